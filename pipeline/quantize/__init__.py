"""The verb ``quantize``: a student as ONNX files, its encoder in the precision asked for."""

from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline.artifact import Card, Contents, write_metrics
from pipeline.data.shards import Shards
from pipeline.errors import InputError
from pipeline.log import Log
from pipeline.models.students import load_checkpoint
from pipeline.quantize.calibration import SPLIT, Material
from pipeline.quantize.config import QuantizeConfig, SearchConfig
from pipeline.quantize.decoder import lower_decoder
from pipeline.quantize.export import DECODER, ENCODER, export_decoder, export_encoder
from pipeline.quantize.fp16 import fp16
from pipeline.quantize.fp32 import fp32
from pipeline.quantize.int8 import int8
from pipeline.quantize.int8_fp16 import int8_fp16
from pipeline.quantize.w4a8 import w4a8
from pipeline.quantize.w6a6 import w6a6

__all__ = ["PRECISIONS", "QuantizeConfig", "SearchConfig", "quantize"]

PRECISIONS: Mapping[str, Callable[[QuantizeConfig, Path, Material], dict[str, float]]] = {
    "fp32": fp32,
    "fp16": fp16,
    "int8": int8,
    "int8_fp16": int8_fp16,
    "w6a6": w6a6,
    "w4a8": w4a8,
}
"""Precision to function: it gets the config, ``encoder.onnx`` in fp32 to be replaced, and the calibration images; it
returns figures."""


def quantize(
    config: QuantizeConfig, *, prepare: Path, align: Path, student: str, precision: str, out: Path, log: Log
) -> Contents:
    """Export one student, and lower its encoder to one precision.

    Args:
        config: See `QuantizeConfig`.
        prepare: A dataset; its calibration split alone is read.
        align: The student's checkpoint.
        student: Its name.
        precision: A key of `PRECISIONS`.
        out: Gets ``encoder.onnx``, ``decoder.onnx`` and ``metrics.json``.
        log: Told the figures.

    Raises:
        InputError: The precision is unknown, the checkpoint is another model's, or a check on the result fails.
    """
    if precision not in PRECISIONS:
        raise InputError(f"unknown precision {precision!r}: there is {', '.join(PRECISIONS)}.")
    card = Card.read(align)
    if card.kind != "checkpoint" or card.model != student:
        raise InputError(
            f"{align} holds a {card.kind} of {card.model}, not a checkpoint of {student}: run `dvc repro`."
        )
    sam = load_checkpoint(align)
    material = Material(config, sam, Shards(prepare, SPLIT))
    encoder, decoder = out / ENCODER, out / DECODER
    metrics = export_encoder(sam, encoder, opset=config.opset, tolerance=config.max_difference)
    metrics |= export_decoder(sam, decoder, opset=config.opset, tolerance=config.max_difference)
    log(metrics)
    metrics |= PRECISIONS[precision](config, encoder, material)
    metrics |= lower_decoder(config, decoder, encoder, material)
    sizes = {"encoder_bytes": float(encoder.stat().st_size), "decoder_bytes": float(decoder.stat().st_size)}
    metrics |= sizes | {"size_mib": sum(sizes.values()) / 2**20}
    log(metrics)
    write_metrics(out, metrics)
    load: dict[str, str | int | float | bool] = {
        "image_size": sam.image_size,
        "input_size": sam.input_size,
        "embedding_size": sam.embedding_size,
    }
    return Contents(
        kind="onnx",
        model=student,
        options=card.options,
        precision=precision,
        load=load,
        calibration=material.card() if precision != "fp32" or config.decoder != "fp32" else None,
    )
