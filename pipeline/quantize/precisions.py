"""The table of precisions.

``fp32`` is the precision of training, ``int8_fp16`` the one for GPUs. ``w6a6`` (as TinySAM reports it) and ``w4a8`` are
studies of accuracy: no engine runs them faster, and the files store their weights in 8 bits.
"""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from pipeline.export.form import save
from pipeline.quantize.calibration import CalibrationData, agreement, gate
from pipeline.quantize.casts import remove_casts
from pipeline.quantize.config import QuantizeConfig
from pipeline.quantize.fp16 import fp16, fp16_layers, narrowed
from pipeline.quantize.int8 import int8, lower

Lowering = Callable[[QuantizeConfig, Path, CalibrationData], dict[str, float]]
"""Replaces ``encoder.onnx``, which is in fp32, by its form in another precision; returns figures.

Raises `pipeline.core.errors.Refused` where the result is too far from fp32."""


def fp32(config: QuantizeConfig, encoder: Path, data: CalibrationData) -> dict[str, float]:
    """Leave ``encoder`` as it is; no image is read."""
    return {}


def int8_fp16(config: QuantizeConfig, encoder: Path, data: CalibrationData) -> dict[str, float]:
    """Replace ``encoder`` by its int8 form with every other tensor in fp16. See `pipeline.quantize.int8.int8`."""
    with TemporaryDirectory(dir=encoder.parent, prefix=".int8_fp16-") as directory:
        lowered = Path(directory) / encoder.name
        lowered.write_bytes(encoder.read_bytes())
        figures = int8(config, lowered, data)
        in_fp16 = narrowed(lowered, data.feeds(data.chosen[0]), Path(directory))
        remove_casts(in_fp16)
        figures |= {"fp16_layers": fp16_layers(in_fp16)} | save(in_fp16, lowered, reduce_range=config.reduce_range)
        figures |= agreement(encoder, lowered, data)
        gate(config, "int8_fp16", figures)
        lowered.replace(encoder)
        for report in Path(directory).glob("sensitivity*"):
            report.replace(encoder.with_name(report.name))
    return figures


PRECISIONS: Mapping[str, Lowering] = {
    "fp32": fp32,
    "fp16": fp16,
    "int8": int8,
    "int8_fp16": int8_fp16,
    "w6a6": partial(lower, precision="w6a6"),
    "w4a8": partial(lower, precision="w4a8"),
}
