"""Accuracy, latency, memory and size of a teacher or of a student's engine, by the protocols of the papers.

Everything goes through `pipeline.runtime`, the way users run it. What is written: ``metrics.json`` (flat numbers),
``instances.json`` (each instance's IoUs), ``calibration.json`` (predicted against true IoU), ``predictions.json``
(masks of the first images, for the report), ``subject.json`` (what was measured), ``everything.json`` (all masks of
some images, where that is asked for), and ``latency.json`` and ``memory.json`` unless nothing is to be timed; of the
teacher ``masks.json``, which students are compared with, and ``baselines.json``: what trivial masks score.

Several processes may share the work (``torchrun``); the figures are the same. A killed evaluation goes on where it was.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import UInt8
from pydantic import Field

from pipeline.core import code
from pipeline.core.artifact import BASELINES, CARD, METRICS, Card, Contents, file_sha256, write_json, write_metrics
from pipeline.core.config import Config
from pipeline.core.distributed import Ranks, joined
from pipeline.core.errors import InputError
from pipeline.core.log import Log
from pipeline.data.coco import Photograph
from pipeline.evaluate import baselines
from pipeline.evaluate.accuracy import (
    Scores,
    TeacherMasks,
    evaluate_accuracy,
    photographs,
    read_image,
    read_teacher_masks,
)
from pipeline.evaluate.detections import (
    DetectionsConfig,
    SginwConfig,
    evaluate_detections,
    evaluate_sginw,
    files,
    refuse_unwatched,
)
from pipeline.evaluate.everything import EverythingConfig, evaluate_everything
from pipeline.evaluate.images import Done, Run
from pipeline.evaluate.latency import LatencyConfig, measure_latency
from pipeline.evaluate.memory import measuring_memory
from pipeline.models import build
from pipeline.models.cost import count_parameters, macs
from pipeline.models.students import module_of
from pipeline.ops import cpu, masks
from pipeline.runtime import Predictor, Segmenter, load
from pipeline.runtime.self_check import SELF_CHECK
from pipeline.training.checkpoint import checkpoint_of

__all__ = ["DetectionsConfig", "EvaluateConfig", "LatencyConfig", "SginwConfig", "evaluate", "evaluate_teacher"]

_MIB = 1 << 20
MASKS = "masks.json"


class EvaluateConfig(Config):
    """How teacher and students are measured."""

    prompts_batch: Annotated[int, Field(ge=1)] = 32
    """Prompts decoded at once when accuracy is measured."""
    feed_back: bool = True
    """Ask by 3 and 5 clicks also with the mask before given as a prompt."""
    pictures: Annotated[int, Field(ge=0)] = 12
    """Validation images whose masks are kept for the report."""
    data: str
    """The folder that holds all files of ``detections`` and ``sginw``: DVC watches it. Any path if there are none."""
    detections: dict[Annotated[str, Field(pattern=r"^[a-z0-9_]+$")], DetectionsConfig] = {}
    """Detectors' boxes to be segmented, by the name that their figures get; ``{}`` for none."""
    sginw: SginwConfig | None = None
    """Segmentation in the Wild; null leaves it out."""
    everything: EverythingConfig | None = EverythingConfig()
    """All masks of an image; null leaves it out."""
    latency: LatencyConfig = LatencyConfig()


@dataclass(frozen=True)
class _Subject:
    """What is measured."""

    source: Path
    role: str
    teacher: TeacherMasks | None
    """The teacher's masks, for a student."""


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
    return _evaluate(config, prepare, _Subject(teacher, "teacher", None), [], out, log)


def evaluate(
    config: EvaluateConfig,
    *,
    prepare: Path,
    build_engine: Path,
    evaluate_teacher: Path,
    student: str,
    precision: str,
    out: Path,
    log: Log,
) -> Contents:
    """Measure a student's engine.

    Args:
        config: Section ``evaluate`` of params.yaml.
        prepare: The dataset.
        build_engine: The engine.
        evaluate_teacher: The teacher's evaluation, whose masks the student's are compared with.
        student: The student it should be.
        precision: The precision it should have.
        out: Empty directory for the artifact.
        log: Gets the metrics.

    Raises:
        InputError: The dataset or the engine is missing or damaged, it is another student's, or the teacher was
            measured on another dataset.
    """
    card, teachers = Card.read(build_engine), Card.read(evaluate_teacher)
    if (card.model, card.precision) != (student, precision):
        raise InputError(
            f"{build_engine} holds {card.model} {card.precision}, not {student} {precision}: "
            f"run `dvc repro --force --single-item build_engine@{student}-{precision}`."
        )
    if teachers.parents.get("prepare") != Card.read(prepare).digest:
        raise InputError(f"{evaluate_teacher} was measured on another dataset than {prepare}: run `dvc repro`.")
    subject = _Subject(build_engine, "student", read_teacher_masks(evaluate_teacher / MASKS))
    return _evaluate(config, prepare, subject, [teachers.digest], out, log)


def _evaluate(
    config: EvaluateConfig, prepare: Path, subject: _Subject, inputs: list[str], out: Path, log: Log
) -> Contents:
    refuse_unwatched(config.data, config.detections, config.sginw)
    source, card = subject.source, Card.read(subject.source)
    validation = photographs(prepare)
    example = next(photograph for photograph in validation if photograph.instances)
    box = masks.box(masks.decode(example.instances[0].rle))
    segmenter = load(source, threads=config.latency.threads)
    timed, measured = config.latency.runs > 0, dict[str, float]()
    identity = [
        config.model_dump_json(exclude={"latency"}),
        str(config.latency.threads),
        # What a killed run of other code left must not be mixed with this one's.
        code.digest(__name__, module_of(card.model or "")),
        *(file_sha256(path) for path in files(config.detections, config.sginw)),
    ]
    kept = checkpoint_of(
        f"evaluate-{card.model}", *identity, Card.read(prepare).digest, card.digest, *inputs
    ).with_suffix("")
    with ExitStack() as stack:
        ranks = stack.enter_context(joined())
        if timed and ranks.first:  # beside accuracy, of which no time is taken
            path = prepare / "validation" / "images" / example.file_name
            memory = stack.enter_context(measuring_memory(source, path, box, threads=config.latency.threads))
        with torch.inference_mode(), _running(config, segmenter, ranks, kept) as run:
            scores = evaluate_accuracy(
                run,
                prepare,
                validation,
                pictures=config.pictures,
                with_mask_input=config.feed_back,
                teacher=subject.teacher,
                keep_all=subject.role == "teacher",
            )
            metrics = _detections(config, run, out)
        contents = Contents(kind="evaluation", model=card.model, precision=card.precision, scratch=(kept,))
        if not ranks.first:
            return contents
        metrics |= scores.metrics() | _cost(card) | {"size_mib": _size_mib(source)}
        log(metrics)
        if timed:
            measured["memory_mib"] = memory()
            write_json(out / "memory.json", measured)
            measured |= _measure_latency(config.latency, segmenter, read_image(prepare, example), box, out)
            log(measured)
    metrics |= _everything(config, segmenter, prepare, validation, out)
    if subject.role == "teacher":
        with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
            write_json(out / BASELINES, baselines.trivial_masks(validation, pool))
    _write(out, scores, subject, card, validation, config.pictures)
    write_metrics(out, metrics | measured)
    return contents


@contextmanager
def _running(config: EvaluateConfig, segmenter: Segmenter, ranks: Ranks, kept: Path) -> Iterator[Run]:
    """What evaluators share, and the threads that work beside the model."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        yield Run(Predictor(segmenter), pool, config.prompts_batch, ranks, Done(kept, ranks.rank))


def _detections(config: EvaluateConfig, run: Run, out: Path) -> dict[str, float]:
    """Figures of detectors' boxes, for the first process."""
    metrics = dict[str, float]()
    for name, boxes in config.detections.items():
        metrics |= evaluate_detections(run, name, boxes) or {}
    if config.sginw is not None and (found := evaluate_sginw(run, config.sginw)) is not None:
        metrics |= found[0]
        write_json(out / "sginw.json", found[1])
    return metrics


def _everything(
    config: EvaluateConfig, segmenter: Segmenter, prepare: Path, validation: list[Photograph], out: Path
) -> dict[str, float]:
    """Figures of everything mode, in one process."""
    if config.everything is None:
        return {}
    arguments = (Predictor(segmenter), prepare, validation, config.everything)
    metrics, pictures = evaluate_everything(*arguments, timed=config.latency.runs > 0)
    write_json(out / "everything.json", pictures)
    return metrics


def _write(out: Path, scores: Scores, subject: _Subject, card: Card, validation: Any, pictures: int) -> None:
    """Everything but metrics and times."""
    shown = {p.id for p in [p for p in validation if p.instances][:pictures]}
    write_json(out / "instances.json", scores.instances)
    write_json(out / "calibration.json", scores.calibration())
    write_json(out / "predictions.json", [p for p in scores.predictions if p["image_id"] in shown])
    if subject.role == "teacher":
        write_json(out / MASKS, scores.predictions)
    about = {"precision": card.precision or "fp32", "runtime": str(card.load.get("engine", "torch"))}
    write_json(out / "subject.json", about | {"model": card.model, "role": subject.role})


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
    aside = (CARD, METRICS, SELF_CHECK)
    files = [path for path in source.rglob("*") if path.is_file() and path.name not in aside]
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
        | {"processor": cpu.processor(), "instructions": cpu.instructions(), "versions": cpu.versions()}
        | {part: asdict(timing) for part, timing in timings.items()},
    )
    return {
        "latency_ms": timings["end_to_end"].median_ms,
        "latency_p95_ms": timings["end_to_end"].p95_ms,
        "encoder_ms": timings["encoder"].median_ms,
        "decoder_ms": timings["decoder"].median_ms,
        "images_per_s": 1000 * config.batch / timings["throughput"].median_ms,
    }
