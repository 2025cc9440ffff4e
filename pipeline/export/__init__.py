"""Stage ``export``: export a student to ONNX in fp32, the source of all its precisions."""

from pathlib import Path

from pydantic import Field

from pipeline.core.artifact import Card, Contents, write_metrics
from pipeline.core.config import Config
from pipeline.core.errors import InputError
from pipeline.core.log import Log
from pipeline.export.sam import DECODER, ENCODER, export_decoder, export_encoder
from pipeline.models.students import load_checkpoint

__all__ = ["DECODER", "ENCODER", "ExportConfig", "export", "export_decoder", "export_encoder"]


class ExportConfig(Config):
    """How students are exported."""

    opset: int = Field(18, ge=18, le=23)
    """Version of ONNX's operators."""
    max_difference: float = Field(1e-3, gt=0)
    """Largest absolute difference between an exported file and PyTorch that passes."""


def export(config: ExportConfig, *, align: Path, student: str, out: Path, log: Log) -> Contents:
    """Export one student.

    Args:
        config: Section ``export`` of params.yaml.
        align: The student's checkpoint.
        student: Name of the student.
        out: Output directory for ``encoder.onnx``, ``decoder.onnx`` and ``metrics.json``.
        log: Receives the metrics.

    Raises:
        InputError: The checkpoint is damaged or of another model.
        Refused: A file breaks a rule, or its outputs differ from PyTorch's.
    """
    card = Card.verified(align)
    if card.kind != "checkpoint" or card.model != student:
        raise InputError(
            f"{align} holds a {card.kind} of {card.model}, not a checkpoint of {student}: run `dvc repro`."
        )
    sam = load_checkpoint(align)
    metrics = export_encoder(sam, out / ENCODER, opset=config.opset, tolerance=config.max_difference)
    metrics |= export_decoder(sam, out / DECODER, opset=config.opset, tolerance=config.max_difference)
    log(metrics)
    write_metrics(out, metrics)
    load: dict[str, str | int | float | bool] = {
        "image_size": sam.image_size,
        "input_size": sam.input_size,
        "embedding_size": sam.embedding_size,
    }
    return Contents(kind="onnx", model=student, options=card.options, precision="fp32", load=load)
