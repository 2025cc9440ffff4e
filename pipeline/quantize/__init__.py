"""Quantize a student's ONNX files to one precision."""

import shutil
from pathlib import Path

import onnx

from pipeline.core.artifact import Card, Contents, write_metrics
from pipeline.core.errors import InputError
from pipeline.core.log import Log
from pipeline.data.shards import Shards
from pipeline.export import DECODER, ENCODER
from pipeline.export.saturation import weight_range
from pipeline.models.students import load_checkpoint
from pipeline.ops.cpu import WEIGHT_RANGE
from pipeline.quantize.calibration import SPLIT, CalibrationData
from pipeline.quantize.config import QuantizeConfig, SearchConfig
from pipeline.quantize.decoder import lower_decoder
from pipeline.quantize.precisions import PRECISIONS

__all__ = ["PRECISIONS", "QuantizeConfig", "SearchConfig", "quantize"]


def quantize(
    config: QuantizeConfig,
    *,
    prepare: Path,
    align: Path,
    export: Path,
    student: str,
    precision: str,
    out: Path,
    log: Log,
) -> Contents:
    """Quantize an exported student to one precision.

    Args:
        config: Section ``quantize`` of params.yaml.
        prepare: The dataset; only its calibration split is read.
        align: The student's checkpoint, for its loss.
        export: The student as ONNX files.
        student: Name of the student.
        precision: A key of `PRECISIONS`.
        out: Empty directory for ``encoder.onnx``, ``decoder.onnx`` and ``metrics.json``.
        log: Receives the metrics.

    Raises:
        InputError: The precision is unknown, or an artifact is another model's or damaged.
        Refused: The result differs too much from fp32, or breaks a rule of `pipeline.export.rules`.
    """
    if precision not in PRECISIONS:
        raise InputError(f"unknown precision {precision!r}: there is {', '.join(PRECISIONS)}.")
    source = Card.verified(export)
    if (source.kind, source.model, source.precision) != ("onnx", student, "fp32"):
        raise InputError(
            f"{export} holds {source.kind} {source.model} {source.precision}, not onnx {student} fp32: run `dvc repro`."
        )
    data = CalibrationData(config, load_checkpoint(align), Shards(prepare, SPLIT))
    encoder, decoder = out / ENCODER, out / DECODER
    for file in (encoder, decoder):
        shutil.copyfile(export / file.name, file)
    metrics = PRECISIONS[precision](config, encoder, data)
    metrics |= lower_decoder(config, decoder, encoder, data, precision=precision)
    sizes = {"encoder_bytes": float(encoder.stat().st_size), "decoder_bytes": float(decoder.stat().st_size)}
    metrics |= sizes | {"size_mib": sum(sizes.values()) / 2**20}
    reach = max(weight_range(onnx.load(file)) for file in (encoder, decoder))
    log(metrics)
    write_metrics(out, metrics)
    return Contents(
        kind="onnx",
        model=student,
        options=source.options,
        precision=precision,
        load=source.load | ({WEIGHT_RANGE: reach} if reach else {}),
        calibration=data.card() if precision != "fp32" or config.decoder not in ("fp32", "same") else None,
    )
