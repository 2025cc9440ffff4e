"""The section ``quantize`` of params.yaml."""

from typing import Literal

from pydantic import Field

from pipeline.core.config import Config


class SearchConfig(Config):
    """How `pipeline.quantize.scales.search` tries scales."""

    candidates: int = Field(default=100, ge=2)
    """Scales tried for each tensor and each channel."""
    lowest: float = Field(default=0.01, gt=0)
    """The least of them, as part of the largest magnitude's."""
    highest: float = Field(default=1.2, gt=0)
    """The largest of them."""
    rounds: int = Field(default=3, ge=1)
    """How often weights and activations are searched in turn."""
    rows: int = Field(default=512, ge=1)
    """Rows of each layer that the distance is taken on, from all calibration images together."""


class QuantizeConfig(Config):
    """How encoders are lowered, and how int8 ranges are found."""

    calibration_images: int = Field(default=256, ge=1)
    """Images of the calibration split that ranges of activations are taken from."""
    holdout_images: int = Field(default=64, ge=1)
    """Further images of the same split on which the quantized encoder is compared with the exported one."""
    seed: int = Field(default=0, ge=0)
    """Decides which images these are."""
    method: Literal["modelopt", "onnxruntime", "search"] = "onnxruntime"
    """What finds scales: NVIDIA ModelOpt, ONNX Runtime's quantizer, or TinySAM's search."""
    calibration: Literal["max", "entropy", "percentile"] = "max"
    """Range of an activation: its largest magnitude, least divergence of its distribution, or ``percentile`` of it."""
    percentile: float = Field(default=99.99, gt=50, le=100)
    """Part of an activation's values that its range holds, in percent, where ``calibration`` says so."""
    search: SearchConfig = SearchConfig()
    """For ``method: search``."""
    reduce_range: bool = True
    """Keep int8 weights in [-64, 64], as processors without VNNI need (ONNX Runtime's name for it); false for TensorRT,
    whose arithmetic is exact over the whole range. Costs a bit of the weights' precision."""
    quantize_attention: bool = False
    """Also lower products of two activations (attention with softmax), not only those with weights."""
    keep: list[str] = []
    """Layers that stay in floating point, by name or pattern: ``neck.*``. The sensitivity report suggests some."""
    decoder: Literal["fp32", "fp16", "int8"] = "fp32"
    """The mask decoder's precision."""
    sensitivity_images: int = Field(default=8, ge=0)
    """Held-out images the sensitivity report of int8 and narrower encoders is made on; 0 makes none."""
    min_cosine: float = Field(default=0.98, ge=-1, le=1)
    """Smallest mean cosine between lowered and exported embeddings that passes."""
