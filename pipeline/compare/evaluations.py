"""Read evaluations and select those on the same dataset; others cannot be compared."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from pipeline.core.artifact import BASELINES, CARD, DATASETS, METRICS, PHOTOGRAPHS, Card, Refusal
from pipeline.core.errors import InputError
from pipeline.core.stage import ARTIFACTS
from pipeline.core.untrusted import json_file

DATASET = "prepare"
TEACHERS = "evaluate_teacher"
"""Reference for a student's agreement; a parent of the evaluation, but not the measured artifact."""


@dataclass(frozen=True)
class Evaluation:
    """One measured model."""

    model: str
    precision: str
    runtime: str
    role: str
    """``teacher`` or ``student``."""
    metrics: Mapping[str, float]
    card: Card
    source: str
    """Path of the measured artifact: the checkpoint or the engine."""
    source_stage: str
    predictions: Mapping[int, Mapping[str, Any]]
    """Masks of the first images, by annotation id."""
    scores: Mapping[int, Mapping[str, Any]]
    """IoUs by annotation id."""
    calibration: Mapping[str, Sequence[Mapping[str, Any]]]
    """Ten bins per prompt with mean ``predicted`` and true ``iou`` and ``count``; empty if not measured."""
    everything: Sequence[Mapping[str, Any]]
    """Masks of everything mode for some images, by mode; empty if not measured."""
    everything_images: int | None
    """Images evaluated in everything mode; None if not measured or not known."""
    photographs: Mapping[str, Any]
    """Masks of two real photographs; empty if not stored."""
    datasets: Mapping[str, Mapping[str, Any]]
    """Name, digest, protocol and size of each data set, by the prefix of its metrics; empty for older evaluations."""
    guarded: bool | None
    """Whether latency was measured on an idle machine; None if not measured."""
    processor: str | None = None
    """Processor or GPU on which latency was measured, as the system names it."""

    @property
    def name(self) -> str:
        """Model and precision, for display."""
        return f"{self.model} {self.precision}"

    @property
    def source_digest(self) -> str:
        """Digest of the measured artifact."""
        return self.card.parents[self.source_stage]


_SCORES = dict[str, dict[str, float | None]]


class _Subject(BaseModel):
    """``subject.json``."""

    model: str
    precision: str
    runtime: str
    role: str


class _Instance(BaseModel):
    """An entry of ``instances.json`` or ``predictions.json``."""

    annotation_id: int


class _Everything(BaseModel):
    """``everything.json``."""

    images: list[dict[str, Any]] = []
    evaluated: int | None = None


Refusals = Mapping[tuple[str, str], Refusal]
"""Candidates that failed a gate, by model and precision."""


@dataclass(frozen=True)
class LeftOut:
    """A candidate excluded from the comparison."""

    name: str
    reason: str


def read(directory: Path, keys: Path = Path()) -> Evaluation:
    """Read one evaluation.

    Args:
        directory: The artifact.
        keys: Its path relative to its stage's directory, the same as that of the measured artifact.

    Raises:
        InputError: The directory is not a complete evaluation.
    """
    card = Card.read(directory)
    sources = sorted(card.parents.keys() - {DATASET, TEACHERS})
    if card.kind != "evaluation" or len(sources) != 1 or DATASET not in card.parents:
        raise InputError(f"{directory} is not an evaluation of one model on one dataset: run `dvc repro`.")
    subject = _read_json(directory / "subject.json", _Subject)
    latency = _read_optional_json(directory / "latency.json") or {}
    everything = _read_optional_json(directory / "everything.json", _Everything) or {}
    return Evaluation(
        model=str(subject["model"]),
        precision=str(subject["precision"]),
        runtime=str(subject["runtime"]),
        role=str(subject["role"]),
        metrics=_read_json(directory / METRICS, dict[str, float | None]),
        card=card,
        source=(ARTIFACTS / sources[0] / keys).as_posix(),
        source_stage=sources[0],
        predictions={p["annotation_id"]: p for p in _read_json(directory / "predictions.json", list[_Instance])},
        scores={s["annotation_id"]: s for s in _read_json(directory / "instances.json", list[_Instance])},
        calibration=_read_optional_json(directory / "calibration.json", dict[str, list[dict[str, Any]]]) or {},
        everything=everything.get("images", []),
        everything_images=everything.get("evaluated"),
        photographs=_read_optional_json(directory / PHOTOGRAPHS) or {},
        datasets=_read_optional_json(directory / DATASETS, dict[str, dict[str, Any]]) or {},
        guarded=latency.get("guarded"),
        processor=latency.get("gpu", latency.get("processor")),
    )


def read_all(
    prepare: Path, evaluate_teacher: Path, evaluate: Path, candidates: Sequence[tuple[str, str]] | None = None
) -> tuple[list[Evaluation], Refusals, list[LeftOut]]:
    """Read all evaluations: the teacher's and the students' on the same dataset, refusals, and excluded candidates.

    Args:
        prepare: The dataset.
        evaluate_teacher: The teacher's evaluation.
        evaluate: Directory of the students' evaluations.
        candidates: Pairs of student and precision to read; None for all in ``evaluate``.

    Raises:
        InputError: The teacher was measured on another dataset, or an evaluation is damaged.
    """
    dataset = Card.read(prepare).digest
    teacher = read(evaluate_teacher)
    if teacher.card.parents[DATASET] != dataset:
        raise InputError(f"{evaluate_teacher} was measured on another dataset than {prepare}: run `dvc repro`.")
    evaluations, refused, left_out = [teacher], dict[tuple[str, str], Refusal](), []
    available = [card.parent.relative_to(evaluate) for card in sorted(evaluate.rglob(CARD))]
    for keys in available if candidates is None else [Path(*pair) for pair in candidates]:
        if keys not in available:
            left_out.append(LeftOut(" ".join(keys.parts), "not evaluated"))
            continue
        card = Card.read(evaluate / keys)
        if card.parents.get(DATASET) != dataset:
            left_out.append(LeftOut(" ".join(keys.parts), "measured on another dataset"))
        elif card.refusal:
            refused[str(card.model), str(card.precision)] = card.refusal
        else:
            evaluation = read(evaluate / keys, keys)
            if evaluation.datasets == teacher.datasets:
                evaluations.append(evaluation)
            else:
                left_out.append(LeftOut(evaluation.name, "evaluated on other sets or by another protocol"))
    return evaluations, refused, left_out


def read_baselines(evaluate_teacher: Path, prefixes: Iterable[str] = ()) -> Mapping[str, Mapping[str, float]]:
    """Scores of trivial masks on the same instances, by predictor; empty for evaluations of older versions.

    Args:
        evaluate_teacher: The teacher's evaluation.
        prefixes: Prefixes of further validation sets, whose scores are added with them.
    """
    scores = {
        name: dict(own) for name, own in (_read_optional_json(evaluate_teacher / BASELINES, _SCORES) or {}).items()
    }
    for prefix in filter(None, prefixes):
        more = _read_optional_json(evaluate_teacher / prefix.removesuffix("_") / BASELINES, _SCORES) or {}
        for name, own in more.items():
            scores.setdefault(name, {}).update({prefix + metric: value for metric, value in own.items()})
    return scores


def _read_optional_json(path: Path, kind: Any = dict[str, Any]) -> Any:
    """Read an optional file, which older versions or a disabled protocol did not write; None if absent."""
    return _read_json(path, kind) if path.is_file() else None


def _read_json(path: Path, kind: Any) -> Any:
    """The content of a file of an evaluation, once it is checked to be of a kind."""
    remedy = "Repeat the evaluation (`dvc repro`)."
    content = json_file.load(path, remedy=remedy)
    json_file.validated(content, kind, str(path), remedy=remedy)
    return content
