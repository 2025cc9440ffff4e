"""Accuracy, latency, memory and size of a teacher or of a student's engine, on the validation split.

Everything goes through `pipeline.runtime`, the way users run it. What is written: ``metrics.json`` (flat numbers),
``instances.json`` (each instance's IoU), ``predictions.json`` (masks of the first images, for the report),
``subject.json`` (what was measured), ``everything.json`` (masks of everything mode, where it is measured), and
``latency.json`` and ``memory.json`` unless nothing is to be timed.
"""

from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from jaxtyping import UInt8
from pydantic import Field

from pipeline import masks
from pipeline.artifact import CARD, METRICS, Card, Contents, write_json, write_metrics
from pipeline.config import Config
from pipeline.errors import InputError
from pipeline.evaluate.accuracy import evaluate_accuracy, photographs, read_image
from pipeline.evaluate.everything import EverythingConfig, evaluate_everything
from pipeline.evaluate.latency import LatencyConfig, measure_latency
from pipeline.evaluate.memory import measuring_memory
from pipeline.log import Log
from pipeline.models import build
from pipeline.models.cost import count_parameters, macs
from pipeline.runtime import Predictor, Segmenter, load

__all__ = ["EvaluateConfig", "LatencyConfig", "evaluate", "evaluate_teacher"]

_MIB = 1 << 20


class EvaluateConfig(Config):
    """How teacher and students are measured."""

    prompts_batch: Annotated[int, Field(ge=1)]
    """Prompts decoded at once when accuracy is measured."""
    pictures: Annotated[int, Field(ge=0)]
    """Validation images whose masks are kept for the report."""
    everything: EverythingConfig | None
    """None leaves everything mode out."""
    latency: LatencyConfig


def evaluate_teacher(config: EvaluateConfig, *, prepare: Path, teacher: Path, out: Path, log: Log) -> Contents:
    """Measure the teacher.

    Args:
        config: Section ``evaluate`` of params.yaml.
        prepare: The dataset.
        teacher: The checkpoint.
        out: Empty directory for the artifact.
        log: Gets the metrics.

    Raises:
        InputError: The dataset or the checkpoint is missing or damaged.
    """
    return _evaluate(config, prepare, teacher, "teacher", out, log)


def evaluate(
    config: EvaluateConfig, *, prepare: Path, build_engine: Path, student: str, precision: str, out: Path, log: Log
) -> Contents:
    """Measure a student's engine.

    Args:
        config: Section ``evaluate`` of params.yaml.
        prepare: The dataset.
        build_engine: The engine.
        student: The student it should be.
        precision: The precision it should have.
        out: Empty directory for the artifact.
        log: Gets the metrics.

    Raises:
        InputError: The dataset or the engine is missing or damaged, or it is another student's.
    """
    card = Card.read(build_engine)
    if (card.model, card.precision) != (student, precision):
        raise InputError(
            f"{build_engine} holds {card.model} {card.precision}, not {student} {precision}: "
            f"run `dvc repro --force --single-item build_engine@{student}-{precision}`."
        )
    return _evaluate(config, prepare, build_engine, "student", out, log)


def _evaluate(config: EvaluateConfig, prepare: Path, source: Path, role: str, out: Path, log: Log) -> Contents:
    card = Card.read(source)
    validation = photographs(prepare)
    subject = next(photograph for photograph in validation if photograph.instances)
    box = masks.box(masks.decode(subject.instances[0].rle))
    segmenter = load(source, threads=config.latency.threads)
    spent = dict[str, float]()
    with ExitStack() as stack:
        if config.latency.runs:  # beside accuracy, of which no time is taken
            path = prepare / "validation" / "images" / subject.file_name
            memory = stack.enter_context(measuring_memory(source, path, box, threads=config.latency.threads))
        with torch.inference_mode():
            scores = evaluate_accuracy(
                Predictor(segmenter),
                prepare,
                validation,
                prompts_batch=config.prompts_batch,
                pictures=config.pictures,
            )
        metrics = scores.metrics() | _cost(card) | {"size_mib": _size_mib(source)}
        log(metrics)
        if config.latency.runs:
            spent["memory_mib"] = memory()
            write_json(out / "memory.json", spent)
            spent |= _measure_latency(config.latency, segmenter, read_image(prepare, subject), box, out)
            log(spent)
    metrics |= spent
    if config.everything:
        arguments = (Predictor(segmenter), prepare, validation, config.everything)
        everything, pictures = evaluate_everything(*arguments, timed=bool(config.latency.runs))
        log(everything)
        metrics |= everything
        write_json(out / "everything.json", pictures)
    write_json(out / "instances.json", scores.instances)
    write_json(out / "predictions.json", scores.predictions)
    about = {"precision": card.precision or "fp32", "runtime": str(card.load.get("engine", "torch"))}
    write_json(out / "subject.json", about | {"model": card.model, "role": role})
    write_metrics(out, metrics)
    return Contents(kind="evaluation", model=card.model, precision=card.precision)


def _cost(card: Card) -> dict[str, float]:
    """Parameters and multiply-accumulates of the model an artifact was made from."""
    if card.model is None:
        raise InputError("this artifact's card names no model: make it anew with `dvc repro`.")
    with torch.device("meta"):  # shapes are enough, and a ViT-H would fill 2.4 GB
        sam = build(card.model, card.options)
    cost = macs(sam)
    return {
        "parameters": float(count_parameters(sam)),
        "encoder_macs": float(cost["encoder"]),
        "decoder_macs_per_prompt": float(cost["decoder_per_prompt"]),
    }


def _size_mib(source: Path) -> float:
    """Size of the files that are deployed: the artifact without what only tells of it."""
    files = [path for path in source.rglob("*") if path.is_file() and path.name not in (CARD, METRICS)]
    return sum(path.stat().st_size for path in files) / _MIB


def _measure_latency(
    config: LatencyConfig,
    segmenter: Segmenter,
    image: UInt8[np.ndarray, "h w 3"],
    box: tuple[float, float, float, float],
    out: Path,
) -> dict[str, float]:
    """Write latency.json; the numbers of it that are compared."""
    timings = measure_latency(segmenter, config, image, np.array(box, np.float32))
    write_json(
        out / "latency.json",
        {"threads": config.threads, "guarded": all(t.guarded for t in timings.values())}
        | {part: asdict(timing) for part, timing in timings.items()},
    )
    return {
        "latency_ms": timings["end_to_end"].median_ms,
        "encoder_ms": timings["encoder"].median_ms,
        "decoder_ms": timings["decoder"].median_ms,
    }
