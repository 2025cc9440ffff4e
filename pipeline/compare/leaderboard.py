"""The leaderboard: one flat row per model and precision, the teacher first, then by box mIoU."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.compare.evaluations import Evaluation
from pipeline.ops.metrics import BANDS, TRIVIAL, goodness, retained

Row = dict[str, Any]

ACCURACY = tuple(f"{prompt}_miou{band}" for prompt in ("box", "click") for band in ("", *(f"_{b}" for b in BANDS)))
MEASURED = (
    *ACCURACY,
    "box_retained",
    "click_retained",
    "latency_ms",
    "encoder_ms",
    "decoder_ms",
    "size_mib",
    "memory_mib",
    "parameters",
    "encoder_macs",
    "decoder_macs_per_prompt",
)
"""Metrics of every row, in order; None if not measured or if a size band is empty."""
_COUNTS = re.compile(r"(^|_)instances$|^sginw_sets$")
"""Entries of an evaluation's metrics that are not metrics of the model."""

BASELINES = {"filled_box": "filled box", "ellipse": "ellipse in the box", "disc": "best fixed disc"}
"""Display names of the trivial predictors."""
_ABOUT = (
    "model", "precision", "runtime", "role", "guarded", "processor", "artifact", "digest", "datasets",
    *TRIVIAL.values(),
)  # fmt: skip
"""Keys of a row that are not metrics of its model."""
_COMPARED = ("box_miou", "click_miou", "latency_ms", "size_mib", "memory_mib")
"""Metrics for which the leaderboard highlights the best student."""


def leaderboard(evaluations: Sequence[Evaluation], baselines: Mapping[str, Mapping[str, float]]) -> list[Row]:
    """Rows of all evaluations, the teacher's first.

    A row has the metrics of `MEASURED`, all others that any evaluation has, and those of `TRIVIAL`.

    Args:
        evaluations: The teacher's first.
        baselines: Scores of trivial masks, by predictor.
    """
    trivial = {
        key: max((b[f"{prompt}_miou"] for b in baselines.values() if f"{prompt}_miou" in b), default=None)
        for prompt, key in TRIVIAL.items()
    }
    teacher, *students = evaluations
    ordered = sorted(students, key=lambda e: (-e.metrics.get("box_miou", 0.0), e.model, e.precision))
    everything = {name for evaluation in evaluations for name in evaluation.metrics}
    more = sorted(name for name in everything - {*MEASURED} if not _COUNTS.search(name))
    return [_row(evaluation, teacher, more) | trivial for evaluation in (teacher, *ordered)]


def _row(evaluation: Evaluation, teacher: Evaluation, more: Sequence[str]) -> Row:
    shares = {
        f"{prompt}_retained": retained(evaluation.metrics.get(f"{prompt}_miou"), teacher.metrics.get(f"{prompt}_miou"))
        for prompt in ("box", "click")
    }
    numbers = {**evaluation.metrics, **shares}
    return {
        "model": evaluation.model,
        "precision": evaluation.precision,
        "runtime": evaluation.runtime,
        "role": evaluation.role,
        **{name: numbers.get(name) for name in (*MEASURED, *more)},
        "datasets": dict(evaluation.datasets),
        "guarded": evaluation.guarded,
        "processor": evaluation.processor,
        "artifact": evaluation.source,
        "digest": evaluation.source_digest,
    }


def points(rows: Sequence[Row]) -> list[Row]:
    """Data for DVC's plots: name, accuracy and cost of each row. DVC requires the same keys in all rows."""
    shown = ("box_miou", "click_miou", "latency_ms", "size_mib")
    return [{"name": f"{row['model']} {row['precision']}"} | {name: row[name] for name in shown} for row in rows]


def measures(rows: Sequence[Row]) -> list[str]:
    """Names of all metrics of the rows: those of `MEASURED` in order, then the others."""
    return [*MEASURED, *(name for name in rows[0] if name not in (*MEASURED, *_ABOUT))]


def baseline_rows(baselines: Mapping[str, Mapping[str, float]], like: Row) -> list[Row]:
    """Rows of the trivial predictors with role ``baseline`` and the keys of ``like``."""
    rows = []
    for name, title in BASELINES.items():
        if name in baselines:
            about = {"model": title, "precision": "", "runtime": "no model", "role": "baseline"}
            scores = {key: value for key, value in baselines[name].items() if key in like}
            rows.append(dict.fromkeys(like) | about | scores)
    return rows


def pareto_front(costs: Sequence[float], scores: Sequence[float]) -> list[int]:
    """Indices of the Pareto front, ordered by cost: points whose score no cheaper point reaches."""
    front: list[int] = []
    for i in sorted(range(len(costs)), key=lambda i: (costs[i], -scores[i])):
        if not front or scores[i] > scores[front[-1]]:
            front.append(i)
    return front


def best(rows: Sequence[Row]) -> Mapping[str, int]:
    """Index into ``rows`` of the best student for each compared metric."""
    winners = {}
    for name in _COMPARED:
        values = {
            i: goodness(name, r[name]) for i, r in enumerate(rows) if r["role"] == "student" and r[name] is not None
        }
        if values:
            winners[name] = max(values, key=lambda i: (values[i], -i))
    return winners
