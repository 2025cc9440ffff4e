"""The leaderboard: one flat row per model and precision, the teacher first, then by mIoU with boxes."""

from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.compare.evaluations import Evaluation
from pipeline.metrics import BANDS, retained

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
"""What a row has of numbers, in order; None where something was not measured or a band is empty."""

_LESS_IS_BETTER = ("latency_ms", "size_mib", "memory_mib")


def leaderboard(evaluations: Sequence[Evaluation]) -> list[Row]:
    """Rows of all evaluations; the first of them is the teacher's, which the others are measured against."""
    teacher, *students = evaluations
    ordered = sorted(students, key=lambda e: (-e.metrics.get("box_miou", 0.0), e.model, e.precision))
    return [_row(evaluation, teacher) for evaluation in (teacher, *ordered)]


def _row(evaluation: Evaluation, teacher: Evaluation) -> Row:
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
        **{name: numbers.get(name) for name in MEASURED},
        "guarded": evaluation.guarded,
        "artifact": evaluation.source,
        "digest": evaluation.source_digest,
    }


def flat(rows: Sequence[Row]) -> dict[str, float]:
    """All numbers of all rows as ``<model>.<precision>.<metric>``."""
    return {
        f"{row['model']}.{row['precision']}.{name}": row[name]
        for row in rows
        for name in MEASURED
        if row[name] is not None
    }


def best(rows: Sequence[Row]) -> Mapping[str, int]:
    """Which student is best in each column that people compare, as an index into ``rows``."""
    found = {}
    for name in ("box_miou", "click_miou", *_LESS_IS_BETTER):
        sign = -1 if name in _LESS_IS_BETTER else 1
        values = {i: sign * r[name] for i, r in enumerate(rows) if r["role"] == "student" and r[name] is not None}
        if values:
            found[name] = max(values, key=lambda i: (values[i], -i))
    return found
