"""What evaluations left, read and sorted out: only what was measured on the same dataset can stand side by side."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.core.artifact import BASELINES, CARD, METRICS, Card, Refusal
from pipeline.core.errors import InputError
from pipeline.core.stage import ARTIFACTS

DATASET = "prepare"
TEACHERS = "evaluate_teacher"
"""Whose masks a student's were compared with; not what was measured."""


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
    """Where the measured artifact is: the checkpoint or the engine."""
    source_stage: str
    predictions: Mapping[int, Mapping[str, Any]]
    """Masks by annotation id, of the first images."""
    scores: Mapping[int, Mapping[str, Any]]
    """IoUs by annotation id."""
    calibration: Mapping[str, Sequence[Mapping[str, Any]]]
    """By prompt, ten bins with the mean ``predicted`` and true ``iou`` and the ``count``; empty where not measured."""
    everything: Sequence[Mapping[str, Any]]
    """Of some images, what was found without prompts, by mode; empty where not measured."""
    guarded: bool | None
    """Whether latency was measured on a quiet machine; None where it was not measured."""
    processor: str | None = None
    """On which latency was measured, as the system names it."""

    @property
    def name(self) -> str:
        """The model and its precision, as people say it."""
        return f"{self.model} {self.precision}"

    @property
    def source_digest(self) -> str:
        """Digest of the measured artifact."""
        return self.card.parents[self.source_stage]


Refusals = Mapping[tuple[str, str], Refusal]
"""Candidates that missed a gate, by model and precision."""


@dataclass(frozen=True)
class LeftOut:
    """An evaluation that does not count."""

    name: str
    reason: str


def read(directory: Path, keys: Path = Path()) -> Evaluation:
    """Read one evaluation.

    Args:
        directory: The artifact.
        keys: Its place below its stage's directory, which its source has too.

    Raises:
        InputError: It is no finished evaluation.
    """
    card = Card.read(directory)
    sources = sorted(card.parents.keys() - {DATASET, TEACHERS})
    if card.kind != "evaluation" or len(sources) != 1 or DATASET not in card.parents:
        raise InputError(f"{directory} is not an evaluation of one model on one dataset: make it anew (`dvc repro`).")
    subject = _read_json(directory / "subject.json")
    latency = _read_json_if_there(directory / "latency.json") or {}
    return Evaluation(
        model=str(subject["model"]),
        precision=str(subject["precision"]),
        runtime=str(subject["runtime"]),
        role=str(subject["role"]),
        metrics=_read_json(directory / METRICS),
        card=card,
        source=(ARTIFACTS / sources[0] / keys).as_posix(),
        source_stage=sources[0],
        predictions={p["annotation_id"]: p for p in _read_json(directory / "predictions.json")},
        scores={s["annotation_id"]: s for s in _read_json(directory / "instances.json")},
        calibration=_read_json_if_there(directory / "calibration.json") or {},
        everything=(_read_json_if_there(directory / "everything.json") or {}).get("images", []),
        guarded=latency.get("guarded"),
        processor=latency.get("processor"),
    )


def read_all(
    prepare: Path, evaluate_teacher: Path, evaluate: Path, wanted: Sequence[tuple[str, str]] | None = None
) -> tuple[list[Evaluation], Refusals, list[LeftOut]]:
    """The teacher and all students that were measured on the same dataset, those refused, and the others by name.

    Args:
        prepare: The dataset.
        evaluate_teacher: The teacher's evaluation.
        evaluate: The directory with the students'.
        wanted: Students and precisions that count, whatever else is there; None for all that are there.

    Raises:
        InputError: The teacher was measured on another dataset, or an evaluation is damaged.
    """
    dataset = Card.read(prepare).digest
    teacher = read(evaluate_teacher)
    if teacher.card.parents[DATASET] != dataset:
        raise InputError(f"{evaluate_teacher} was measured on another dataset than {prepare}: run `dvc repro`.")
    kept, refused, left_out = [teacher], dict[tuple[str, str], Refusal](), []
    there = [card.parent.relative_to(evaluate) for card in sorted(evaluate.rglob(CARD))]
    for keys in there if wanted is None else [Path(*pair) for pair in wanted]:
        if keys not in there:
            left_out.append(LeftOut(" ".join(keys.parts), "not evaluated"))
            continue
        found = Card.read(evaluate / keys)
        if found.parents.get(DATASET) != dataset:
            left_out.append(LeftOut(" ".join(keys.parts), "measured on another dataset"))
        elif found.refusal:
            refused[str(found.model), str(found.precision)] = found.refusal
        else:
            kept.append(read(evaluate / keys, keys))
    return kept, refused, left_out


def read_baselines(evaluate_teacher: Path) -> Mapping[str, Mapping[str, float]]:
    """What trivial masks score on the same instances, by predictor; empty where an older version did not measure it."""
    return _read_json_if_there(evaluate_teacher / BASELINES) or {}


def _read_json_if_there(path: Path) -> Any:
    """What later versions write, or an evaluation without some protocol does not: None where it is not there."""
    return _read_json(path) if path.is_file() else None


def _read_json(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read ({error}): make the evaluation anew (`dvc repro`).") from None
