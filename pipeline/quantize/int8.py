"""int8: the encoder's convolutions and matrix products in QDQ form, and the same form with fewer bits.

The file is `pipeline.quantize.qdq`'s, whichever tool has found the scales. The decoder is not touched: it is small, and
makes the masks' borders.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import onnx

from pipeline.export import ENCODER
from pipeline.export.form import save
from pipeline.quantize.calibration import CalibrationData, Reader, agreement, gate
from pipeline.quantize.config import QuantizeConfig
from pipeline.quantize.keys import centre_keys
from pipeline.quantize.layers import Layer, chosen_layers, weights
from pipeline.quantize.qdq import Scales, Widths, qmax, weight_scales, write_qdq
from pipeline.quantize.scales.modelopt import modelopt
from pipeline.quantize.scales.onnxruntime import onnxruntime
from pipeline.quantize.scales.search import search

Calibrator = Callable[[QuantizeConfig, Path, Sequence[Layer], Reader], dict[str, float]]
CALIBRATORS: Mapping[str, Calibrator] = {"modelopt": modelopt, "onnxruntime": onnxruntime}
"""Tools that look at activations one by one; weights get the largest magnitude of each channel."""


def int8(config: QuantizeConfig, encoder: Path, data: CalibrationData) -> dict[str, float]:
    """Replace ``encoder`` by its int8 form.

    Args:
        config: Which tool, and which ranges.
        encoder: ``encoder.onnx`` in fp32.
        data: Images to calibrate on and to compare on.

    Returns:
        Figures of agreement on held-out images, and counts of lowered nodes.

    Raises:
        Refused: A rule of `pipeline.export.rules` is broken, or the result is too far from fp32.
    """
    return lower(config, encoder, data, precision="int8", weight_bits=8, activation_bits=8)


def lower(
    config: QuantizeConfig,
    encoder: Path,
    data: CalibrationData,
    *,
    precision: str,
    weight_bits: int,
    activation_bits: int,
) -> dict[str, float]:
    """Replace ``encoder`` by a form of any width up to 8 bits; otherwise see `int8`."""
    widths = Widths(weight_bits, activation_bits, config.reduce_range)
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
            from pipeline.quantize.sensitivity import write_sensitivity  # brings matplotlib, half a second

            write_sensitivity(encoder.parent, model, chosen, scales, data, images=config.sensitivity_images)
        lowered.replace(encoder)
    return figures | {"quantized_nodes": float(len(chosen)), "shifted_keys": float(len(shifted))}


def find_scales(
    config: QuantizeConfig,
    model: onnx.ModelProto,
    chosen: Sequence[Layer],
    data: CalibrationData,
    widths: Widths,
    known: Scales | None = None,
) -> Scales:
    """Scales of layers by the method that the config names.

    The tools' are for 8 bits; fewer share their ranges, so those of other widths may be handed over as ``known``.
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
