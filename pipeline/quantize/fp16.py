"""fp16 by NVIDIA ModelOpt's AutoCast, and what must stay in fp32 whatever a tool thinks.

Channel LayerNorm squares distances from a mean: above 255 they leave fp16's range. The sums of ReLU linear attention
run over thousands of products that nothing normalises, and the 1e-15 that keeps its division from 0/0 is 0 in fp16.
AutoCast itself leaves in fp32 what exceeds its range on the image it is shown.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
from onnx import ModelProto

from pipeline.export.form import save
from pipeline.quantize.calibration import CalibrationData, Feeds, agreement, gate
from pipeline.quantize.config import QuantizeConfig
from pipeline.quantize.layers import linear_attention
from pipeline.quantize.scales.modelopt import autocast

FP32_KINDS = ("LayerNormalization",)


def fp16(config: QuantizeConfig, encoder: Path, data: CalibrationData) -> dict[str, float]:
    """Replace ``encoder`` by its fp16 form.

    Args:
        config: Has the gate.
        encoder: ``encoder.onnx`` in fp32.
        data: An image AutoCast looks at, and those the result is compared on.

    Raises:
        InputError: The tool is missing.
        Refused: The result is too far from fp32.
    """
    with TemporaryDirectory(dir=encoder.parent, prefix=".fp16-") as directory:
        lowered = Path(directory) / encoder.name
        figures = save(narrowed(encoder, data.feeds(data.chosen[0]), Path(directory)), lowered)
        figures |= agreement(encoder, lowered, data)
        gate(config, "fp16", figures)
        lowered.replace(encoder)
    return figures


def narrowed(source: Path, feeds: Feeds, directory: Path) -> ModelProto:
    """A model of ``source`` in fp16; ``directory`` gets what is needed meanwhile."""
    model, copy = onnx.load(source), directory / "source.onnx"
    onnx.save(model, copy)
    keep = [node.name for node in linear_attention(model)]
    return autocast(copy, feeds, keep_nodes=keep, keep_kinds=FP32_KINDS)
