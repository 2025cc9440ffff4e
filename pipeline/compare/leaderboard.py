"""The leaderboard: one flat row per model and precision, the teacher first, then by mIoU with boxes."""

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
"""What every row has of numbers, in order; None where something was not measured or a band is empty."""
_COUNTS = ("instances", "sginw_sets")
"""Numbers of an evaluation that are no measure of the model."""

BASELINES = {"filled_box": "filled box", "ellipse": "ellipse in the box", "disc": "best fixed disc"}
"""Trivial predictors, as people say them."""
_ABOUT = ("model", "precision", "runtime", "role", "guarded", "processor", "artifact", "digest", *TRIVIAL.values())
"""What a row says of its model, beside numbers."""
_COMPARED = ("box_miou", "click_miou", "latency_ms", "size_mib", "memory_mib")
"""What students are compared by."""


def leaderboard(evaluations: Sequence[Evaluation], baselines: Mapping[str, Mapping[str, float]]) -> list[Row]:
    """Rows of all evaluations; the first of them is the teacher's, which the others are measured against.

    A row has the numbers of `MEASURED` and all others that any of the evaluations has, and those of `TRIVIAL`.

    Args:
        evaluations: The teacher's first.
        baselines: What trivial masks score, by predictor.
    """
    trivial = {
        key: max((b[f"{prompt}_miou"] for b in baselines.values() if f"{prompt}_miou" in b), default=None)
        for prompt, key in TRIVIAL.items()
    }
    teacher, *students = evaluations
    ordered = sorted(students, key=lambda e: (-e.metrics.get("box_miou", 0.0), e.model, e.precision))
    everything = {name for evaluation in evaluations for name in evaluation.metrics}
    more = sorted(everything - {*MEASURED, *_COUNTS})
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
        "guarded": evaluation.guarded,
        "processor": evaluation.processor,
        "artifact": evaluation.source,
        "digest": evaluation.source_digest,
    }


def flat(rows: Sequence[Row]) -> dict[str, float]:
    """All numbers of all rows as ``<model>.<precision>.<metric>``."""
    return {
        f"{row['model']}.{row['precision']}.{name}": row[name]
        for row in rows
        for name in measures(rows)
        if row[name] is not None
    }


def points(rows: Sequence[Row]) -> list[Row]:
    """What DVC plots: per row a name, what it scores and what it costs. DVC wants the same keys in all of them."""
    shown = ("box_miou", "click_miou", "latency_ms", "size_mib")
    return [{"name": f"{row['model']} {row['precision']}"} | {name: row[name] for name in shown} for row in rows]


def measures(rows: Sequence[Row]) -> list[str]:
    """Names of all numbers that rows have: those of `MEASURED` in order, then what else was measured."""
    return [*MEASURED, *(name for name in rows[0] if name not in (*MEASURED, *_ABOUT))]


def baseline_rows(baselines: Mapping[str, Mapping[str, float]], like: Row) -> list[Row]:
    """Rows of the trivial predictors, with the keys of ``like``; their role is ``baseline``."""
    rows = []
    for name, title in BASELINES.items():
        if name in baselines:
            about = {"model": title, "precision": "", "runtime": "no model", "role": "baseline"}
            scores = {key: value for key, value in baselines[name].items() if key in like}
            rows.append(dict.fromkeys(like) | about | scores)
    return rows


def pareto_front(costs: Sequence[float], scores: Sequence[float]) -> list[int]:
    """The Pareto front: indices of what nothing cheaper reaches, from the cheapest on."""
    found: list[int] = []
    for i in sorted(range(len(costs)), key=lambda i: (costs[i], -scores[i])):
        if not found or scores[i] > scores[found[-1]]:
            found.append(i)
    return found


def best(rows: Sequence[Row]) -> Mapping[str, int]:
    """Which student is best in each column that people compare, as an index into ``rows``."""
    found = {}
    for name in _COMPARED:
        values = {
            i: goodness(name, r[name]) for i, r in enumerate(rows) if r["role"] == "student" and r[name] is not None
        }
        if values:
            found[name] = max(values, key=lambda i: (values[i], -i))
    return found
