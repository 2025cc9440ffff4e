"""The section ``quantize`` of params.yaml."""

from typing import Literal

from pydantic import Field

from pipeline.core.config import Config


class SearchConfig(Config):
    """Parameters of `pipeline.quantize.scales.search`."""

    candidates: int = Field(default=100, ge=2)
    """Number of candidate scales per tensor and per channel."""
    lowest: float = Field(default=0.01, gt=0)
    """Smallest candidate, relative to the scale of the largest magnitude."""
    highest: float = Field(default=1.2, gt=0)
    """Largest candidate, relative to the scale of the largest magnitude."""
    rounds: int = Field(default=3, ge=1)
    """Rounds of alternating search over weights and activations."""
    rows: int = Field(default=512, ge=1)
    """Sampled rows per layer, from all calibration images together, on which output distances are computed."""


class QuantizeConfig(Config):
    """How encoders are quantized."""

    calibration_images: int = Field(default=256, ge=1)
    """Images of the calibration split used for calibration."""
    holdout_images: int = Field(default=64, ge=1)
    """Further images of the split, on which the quantized encoder is compared with the exported one."""
    seed: int = Field(default=0, ge=0)
    """Seed that chooses the images."""
    method: Literal["modelopt", "onnxruntime", "search"] = "onnxruntime"
    """Method that finds scales: NVIDIA ModelOpt, ONNX Runtime's quantizer, or TinySAM's search."""
    calibration: Literal["max", "entropy", "percentile"] = "max"
    """Range of an activation: largest magnitude, minimum divergence of its distribution, or ``percentile``."""
    percentile: float = Field(default=99.99, gt=50, le=100)
    """Percentage of an activation's values that its range covers, for ``calibration: percentile``."""
    search: SearchConfig = SearchConfig()
    """Parameters of ``method: search``."""
    reduce_range: bool = True
    """Keep int8 weights in [-64, 64], as processors without VNNI require (ONNX Runtime's term); false for TensorRT,
    whose arithmetic is exact over the full range. Costs one bit of the weights' precision."""
    quantize_attention: bool = False
    """Also quantize products of two activations (attention with softmax), not only those with weights."""
    keep: list[str] = []
    """Layers that stay in floating point, by name or pattern (``neck.*``). The sensitivity report suggests some."""
    decoder: Literal["fp32", "fp16", "int8", "same"] = "fp32"
    """Precision of the mask decoder, of all precisions of the encoder; ``same`` is the encoder's: its widths for int8
    and narrower ones, fp32 and fp16 for these."""
    sensitivity_images: int = Field(default=8, ge=0)
    """Held-out images of the sensitivity report for int8 and narrower encoders; 0 for no report."""
    min_cosine: float = Field(default=0.98, ge=-1, le=1)
    """Smallest mean cosine between quantized and exported embeddings that passes."""
