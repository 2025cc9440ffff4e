"""int8: convolutions and matrix products of the encoder in QDQ form, and the same form with fewer bits.

`pipeline.quantize.qdq` writes the file, whichever tool finds the scales.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx

from pipeline.export import ENCODER
from pipeline.export.form import save
from pipeline.quantize.calibration import CalibrationData, Reader, SearchData, agreement, gate
from pipeline.quantize.config import QuantizeConfig
from pipeline.quantize.keys import centre_keys
from pipeline.quantize.layers import Layer, chosen_layers, weights
from pipeline.quantize.qdq import Scales, Widths, qmax, weight_scales, write_qdq
from pipeline.quantize.scales.modelopt import modelopt
from pipeline.quantize.scales.onnxruntime import onnxruntime
from pipeline.quantize.scales.search import search

Calibrator = Callable[[QuantizeConfig, Path, Sequence[Layer], Reader], dict[str, float]]
CALIBRATORS: Mapping[str, Calibrator] = {"modelopt": modelopt, "onnxruntime": onnxruntime}
"""Tools that find scales of activations only; the scale of a weight's channel is that of its largest magnitude."""

WIDTHS: Mapping[str, tuple[int, int]] = {"int8": (8, 8), "w6a6": (6, 6), "w4a8": (4, 8)}
"""Bits of weights and activations of the precisions that round both."""


def int8(config: QuantizeConfig, encoder: Path, data: CalibrationData) -> dict[str, float]:
    """Replace ``encoder`` by its int8 form.

    Args:
        config: Section ``quantize`` of params.yaml.
        encoder: ``encoder.onnx`` in fp32.
        data: Calibration and held-out images.

    Returns:
        Agreement with fp32 on held-out images, and counts of quantized nodes.

    Raises:
        Refused: The file breaks a rule of `pipeline.export.rules`, or differs too much from fp32.
    """
    return lower(config, encoder, data, precision="int8")


def lower(config: QuantizeConfig, encoder: Path, data: CalibrationData, *, precision: str) -> dict[str, float]:
    """Replace ``encoder`` by its QDQ form in one of `WIDTHS`. See `int8`."""
    widths = Widths(*WIDTHS[precision], config.reduce_range)
    with TemporaryDirectory(dir=encoder.parent, prefix=f".{precision}-") as directory:
        lowered, model = Path(directory) / encoder.name, onnx.load(encoder)
        shifted = list[str]()
        if config.quantize_attention and config.method == "search":
            model, shifted = centre_keys(model, data)
        chosen = chosen_layers(model, attention=config.quantize_attention, keep=config.keep)
        scales = find_scales(config, model, chosen, data, widths)
        figures = save(write_qdq(model, chosen, scales), lowered, reduce_range=config.reduce_range)
        figures |= agreement(encoder, lowered, data)
        gate(config, precision, figures)
        if config.sensitivity_images:
            from pipeline.quantize.sensitivity import write_sensitivity  # imports matplotlib, half a second

            write_sensitivity(encoder.parent, model, chosen, scales, data, images=config.sensitivity_images)
        lowered.replace(encoder)
    return figures | {"quantized_nodes": float(len(chosen)), "shifted_keys": float(len(shifted))}


def find_scales(
    config: QuantizeConfig,
    model: onnx.ModelProto,
    chosen: Sequence[Layer],
    data: SearchData,
    widths: Widths,
    known: Scales | None = None,
) -> Scales:
    """Find the scales of an encoder's or decoder's layers by ``config.method``.

    Tools find ranges for 8 bits, which narrower widths share; ``known`` passes scales found for another width.
    """
    if config.method == "search":
        return search(config.search, model, chosen, data, widths=widths, seed=config.seed)
    if known is None:
        reader = Reader(data.feeds, data.chosen)
        with TemporaryDirectory(prefix="calibrate-") as directory:
            source = Path(directory) / ENCODER
            onnx.save(model, source)
            known = Scales(CALIBRATORS[config.method](config, source, chosen, reader), {})
    values = weights(model, chosen)
    before, after = known.widths.bits_of(chosen), widths.bits_of(chosen)
    return Scales(
        activations={
            name: scale * (qmax(before[name]) / qmax(after[name]))
            for name, scale in known.activations.items()
            if name in after
        },
        weights={
            layer.weight: weight_scales(values[layer.weight], layer.axis, widths.weight_qmax)
            for layer in chosen
            if layer.weight
        },
        widths=widths,
    )
