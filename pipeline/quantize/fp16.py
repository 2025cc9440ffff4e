"""fp16 by NVIDIA ModelOpt's AutoCast, with nodes that must stay in fp32.

Channel LayerNorm squares distances from the mean, which exceed fp16's range above 255. ReLU linear attention sums
thousands of unnormalized products, and the 1e-15 that keeps its division from 0/0 is 0 in fp16. AutoCast itself keeps
in fp32 the nodes that exceed fp16's range on its example image.
"""

from pathlib import Path
from tempfile import TemporaryDirectory

import onnx
from onnx import ModelProto, TensorProto

from pipeline.export.form import save
from pipeline.export.rules import LOWERED
from pipeline.quantize.calibration import CalibrationData, Feeds, agreement, gate
from pipeline.quantize.config import QuantizeConfig
from pipeline.quantize.layers import linear_attention
from pipeline.quantize.scales.modelopt import autocast

FP32_KINDS = ("LayerNormalization",)


def fp16(config: QuantizeConfig, encoder: Path, data: CalibrationData) -> dict[str, float]:
    """Replace ``encoder`` by its fp16 form.

    Args:
        config: Its ``min_cosine`` is the gate.
        encoder: ``encoder.onnx`` in fp32.
        data: AutoCast's example image, and the images the result is compared on.

    Raises:
        InputError: ModelOpt is not installed.
        Refused: The result differs too much from fp32.
    """
    with TemporaryDirectory(dir=encoder.parent, prefix=".fp16-") as directory:
        lowered, model = Path(directory) / encoder.name, narrowed(encoder, data.feeds(data.chosen[0]), Path(directory))
        figures = {"fp16_layers": fp16_layers(model)} | save(model, lowered)
        figures |= agreement(encoder, lowered, data)
        gate(config, "fp16", figures)
        lowered.replace(encoder)
    return figures


def fp16_layers(model: ModelProto) -> float:
    """Share of convolutions and matrix products that compute in fp16."""
    inferred = onnx.shape_inference.infer_shapes(model).graph
    kinds = {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)}
    layers = [kinds.get(node.output[0]) for node in inferred.node if node.op_type in (*LOWERED, "ConvTranspose")]
    return layers.count(TensorProto.FLOAT16) / len(layers) if layers else 0.0


def narrowed(source: Path, feeds: Feeds, directory: Path) -> ModelProto:
    """Convert ``source`` to fp16; temporary files go to ``directory``."""
    model, copy = onnx.load(source), directory / "source.onnx"
    onnx.save(model, copy)
    keep = [node.name for node in linear_attention(model)]
    return autocast(copy, feeds, keep_nodes=keep, keep_kinds=FP32_KINDS)
