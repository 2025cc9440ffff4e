"""Measure accuracy, latency, memory and size of a teacher or a student's engine by the papers' protocols.

Models run through `pipeline.runtime`, as in deployment. Outputs: ``metrics.json`` (flat metrics), ``instances.json``
(IoUs per instance), ``calibration.json`` (predicted against true IoU), ``predictions.json`` (masks of the first images,
for the report), ``subject.json`` (the measured model), ``everything.json`` (all masks of some images, if everything
mode is enabled), ``photographs.json`` (masks of two real photographs), ``datasets.json`` (digest and size of each data
set, by the prefix of its metrics), and ``latency.json`` and ``memory.json`` if ``latency.runs`` is above 0. The
teacher's evaluation adds ``masks.json``, the reference for students' agreement, and ``baselines.json``, the scores of
trivial masks. Files of further validation sets are in folders of their names, their metrics have the name as prefix.

Several processes may share the work (``torchrun``) with identical metrics. An interrupted evaluation resumes.
"""

import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from jaxtyping import UInt8
from pydantic import Field

from pipeline.core import code
from pipeline.core.artifact import (
    DATASETS,
    PHOTOGRAPHS,
    Card,
    Contents,
    file_sha256,
    write_json,
    write_metrics,
)
from pipeline.core.config import Config
from pipeline.core.distributed import Ranks, joined
from pipeline.core.errors import InputError
from pipeline.core.log import Log
from pipeline.data.coco import Photograph
from pipeline.evaluate.accuracy import Scores, evaluate_accuracy, read_teacher_masks
from pipeline.evaluate.cost import cost, size_mib
from pipeline.evaluate.detections import (
    DetectionsConfig,
    SginwConfig,
    describe,
    evaluate_detections,
    evaluate_sginw,
    files,
    require_tracked,
)
from pipeline.evaluate.device import evaluation_device
from pipeline.evaluate.everything import EverythingConfig, evaluate_everything
from pipeline.evaluate.images import Done, Run
from pipeline.evaluate.latency import LatencyConfig, measure_latency
from pipeline.evaluate.memory import measuring_memory
from pipeline.evaluate.outputs import MASKS, write_baselines, write_set
from pipeline.evaluate.photographs import photographs as photographs_of
from pipeline.evaluate.validation import Protocol, ValidationSet, validation_sets
from pipeline.models.students import module_of
from pipeline.ops import cpu, masks
from pipeline.runtime import Predictor, Segmenter, load
from pipeline.training.checkpoint import checkpoint_of

__all__ = ["DetectionsConfig", "EvaluateConfig", "LatencyConfig", "SginwConfig", "evaluate", "evaluate_teacher"]


class EvaluateConfig(Config):
    """Settings of the evaluation of teacher and students."""

    protocol: Protocol = "published"
    """Instances, boxes and areas that count: ``published`` as EfficientViT-SAM's evaluation, ``ours`` without crowd
    regions and masks below ``min_area_px``, with the masks' own boxes and areas."""
    min_area_px: Annotated[int, Field(ge=1)] = 64
    """Smallest mask of protocol ``ours``, in pixels."""
    prompts_batch: Annotated[int, Field(ge=1)] = 32
    """Prompts per decoder call when accuracy is measured."""
    feed_back: bool = True
    """Evaluate 3 and 5 clicks also with the previous mask as an additional prompt."""
    pictures: Annotated[int, Field(ge=0)] = 12
    """Validation images whose masks are stored for the report."""
    photographs: bool = True
    """Store masks of scikit-learn's two sample photographs for the report."""
    data: str
    """Folder with all files of ``detections`` and ``sginw``, tracked by DVC. Any path if both are empty."""
    detections: dict[Annotated[str, Field(pattern=r"^[a-z0-9_]+$")], DetectionsConfig] = {}
    """Detector boxes used as prompts, by the prefix of their metrics; ``{}`` for none."""
    sginw: SginwConfig | None = None
    """Segmentation in the Wild; null disables it."""
    everything: EverythingConfig | None = EverythingConfig()
    """Everything mode: all masks of an image; null disables it."""
    latency: LatencyConfig = LatencyConfig()
    device: str = "auto"
    """Torch device of checkpoints and TensorRT engines; ``auto``: a GPU if there is one, under ``torchrun`` one per
    process. Engines for processors run on the processor."""


@dataclass(frozen=True)
class _Subject:
    """The model under evaluation."""

    source: Path
    role: str
    evaluation: Path | None
    """The teacher's evaluation, for a student."""


def evaluate_teacher(config: EvaluateConfig, *, prepare: Path, teacher: Path, out: Path, log: Log) -> Contents:
    """Measure the teacher.

    Args:
        config: Section ``evaluate`` of params.yaml.
        prepare: Dataset artifact.
        teacher: Checkpoint artifact.
        out: Empty directory for the artifact.
        log: Receives the metrics.

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
        prepare: Dataset artifact.
        build_engine: Engine artifact.
        evaluate_teacher: The teacher's evaluation; its masks are the reference for agreement.
        student: Expected student of the engine.
        precision: Expected precision of the engine.
        out: Empty directory for the artifact.
        log: Receives the metrics.

    Raises:
        InputError: The dataset or the engine is missing or damaged, the engine is of another student or precision, or
            the teacher was evaluated on another dataset.
    """
    card, teacher_card = Card.read(build_engine), Card.read(evaluate_teacher)
    if (card.model, card.precision) != (student, precision):
        raise InputError(
            f"{build_engine} holds {card.model} {card.precision}, not {student} {precision}: "
            f"run `dvc repro --force --single-item build_engine@{student}-{precision}`."
        )
    if teacher_card.parents.get("prepare") != Card.read(prepare).digest:
        raise InputError(f"{evaluate_teacher} was evaluated on a dataset other than {prepare}: run `dvc repro`.")
    subject = _Subject(build_engine, "student", evaluate_teacher)
    return _evaluate(config, prepare, subject, [teacher_card.digest], out, log)


def _evaluate(
    config: EvaluateConfig, prepare: Path, subject: _Subject, inputs: list[str], out: Path, log: Log
) -> Contents:
    require_tracked(config.data, config.detections, config.sginw)
    source, card = subject.source, Card.read(subject.source)
    sets = [
        (validation, validation.photographs(config.protocol, config.min_area_px))
        for validation in validation_sets(prepare)
    ]
    for clash in sorted({validation.prefix for validation, _ in sets} & {f"{name}_" for name in config.detections}):
        raise InputError(f"evaluate.detections.{clash[:-1]} has the name of a validation set: rename one of them.")
    first, photographs = sets[0]
    example = next(photograph for photograph in photographs if photograph.instances)
    box = masks.box(masks.decode(example.instances[0].rle))
    device = evaluation_device(config.device, card)
    segmenter = load(source, device, config.latency.threads)
    timed, cost_metrics = config.latency.runs > 0, dict[str, float]()
    identity = [
        config.model_dump_json(exclude={"latency", "device"}),
        str(config.latency.threads),
        device.partition(":")[0],
        # Results of an interrupted run of other code must not be reused.
        code.digest(__name__, module_of(card.model or "")),
        *(file_sha256(path) for path in files(config.detections, config.sginw)),
    ]
    partial_results = checkpoint_of(
        f"evaluate-{card.model}", *identity, Card.read(prepare).digest, card.digest, *inputs
    ).with_suffix("")
    with ExitStack() as stack:
        ranks = stack.enter_context(joined())
        if timed and ranks.first:  # in parallel with accuracy, which is not timed
            arguments = (source, first.image_file(example), box)
            memory = stack.enter_context(measuring_memory(*arguments, threads=config.latency.threads, device=device))
            if device.startswith("cuda"):
                memory()  # the evaluation's own use of the GPU would count
        with torch.inference_mode(), _running(config, segmenter, ranks, partial_results) as run:
            scores = [_score(config, run, subject, *pair) for pair in sets]
            metrics = _detections(config, run, out)
        contents = Contents(kind="evaluation", model=card.model, precision=card.precision, scratch=(partial_results,))
        if not ranks.first:
            return contents
        for (validation, _), values in zip(sets, scores, strict=True):
            metrics |= {validation.prefix + name: value for name, value in values.metrics().items()}
        metrics |= cost(card) | {"size_mib": size_mib(source)}
        log(metrics)
        if timed:
            cost_metrics |= memory()
            write_json(out / "memory.json", cost_metrics)
            cost_metrics |= _measure_latency(config.latency, segmenter, first.read_image(example), box, device, out)
            log(cost_metrics)
    metrics |= _everything(config, segmenter, first, photographs, out)
    if config.photographs:
        write_json(out / PHOTOGRAPHS, photographs_of(Predictor(segmenter), config.everything))
    for (validation, images), values in zip(sets, scores, strict=True):
        write_set(out, validation, images, values, config.pictures, keep_all=subject.role == "teacher")
    if subject.role == "teacher":
        write_baselines(config.detections, out, sets)
    described = {validation.prefix: validation.describe(images, config.protocol) for validation, images in sets}
    write_json(out / DATASETS, described | {f"{name}_": describe(boxes) for name, boxes in config.detections.items()})
    description = {"precision": card.precision or "fp32", "runtime": str(card.load.get("engine", "torch"))}
    description |= {"device": device.partition(":")[0]}
    write_json(out / "subject.json", description | {"model": card.model, "role": subject.role})
    write_metrics(out, metrics | cost_metrics)
    return contents


def _score(
    config: EvaluateConfig, run: Run, subject: _Subject, validation: ValidationSet, photographs: list[Photograph]
) -> Scores:
    """Accuracy on one set; a student's also against the teacher's masks."""
    reference = subject.evaluation
    teacher = None if reference is None else read_teacher_masks(reference / validation.name / MASKS)
    return evaluate_accuracy(
        run,
        validation,
        photographs,
        pictures=config.pictures,
        with_mask_input=config.feed_back,
        teacher=teacher,
        keep_all=subject.role == "teacher",
    )


@contextmanager
def _running(config: EvaluateConfig, segmenter: Segmenter, ranks: Ranks, partial_results: Path) -> Iterator[Run]:
    """Resources shared by the evaluators, with a thread pool for work outside the model."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        yield Run(Predictor(segmenter), pool, config.prompts_batch, ranks, Done(partial_results, ranks.rank))


def _detections(config: EvaluateConfig, run: Run, out: Path) -> dict[str, float]:
    """Metrics of detector boxes and SGinW; empty on processes other than the first."""
    metrics = dict[str, float]()
    for name, boxes in config.detections.items():
        metrics |= evaluate_detections(run, name, boxes) or {}
    if config.sginw is not None and (result := evaluate_sginw(run, config.sginw)) is not None:
        metrics |= result[0]
        write_json(out / "sginw.json", result[1])
    return metrics


def _everything(
    config: EvaluateConfig, segmenter: Segmenter, first: ValidationSet, photographs: list[Photograph], out: Path
) -> dict[str, float]:
    """Metrics of everything mode on the first set; runs in one process."""
    if config.everything is None:
        return {}
    arguments = (Predictor(segmenter), first, photographs, config.everything)
    metrics, pictures = evaluate_everything(*arguments, timed=config.latency.runs > 0)
    write_json(out / "everything.json", pictures)
    return metrics


def _measure_latency(
    config: LatencyConfig,
    segmenter: Segmenter,
    image: UInt8[np.ndarray, "h w 3"],
    box: tuple[float, float, float, float],
    device: str,
    out: Path,
) -> dict[str, float]:
    """Measure latency, write latency.json and return the metrics used in comparisons."""
    timings = measure_latency(segmenter, config, image, np.array(box, np.float32))
    gpu = {"gpu": torch.cuda.get_device_name(device)} if device.startswith("cuda") else {}
    write_json(
        out / "latency.json",
        {"threads": config.threads, "guarded": all(t.guarded for t in timings.values())}
        | {"processor": cpu.processor(), "instructions": cpu.instructions(), "versions": cpu.versions()}
        | gpu
        | {part: asdict(timing) for part, timing in timings.items()},
    )
    return {
        "latency_ms": timings["end_to_end"].median_ms,
        "latency_p95_ms": timings["end_to_end"].p95_ms,
        "encoder_ms": timings["encoder"].median_ms,
        "decoder_ms": timings["decoder"].median_ms,
        "images_per_s": 1000 * config.batch / timings["throughput"].median_ms,
    }
