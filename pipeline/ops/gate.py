"""The rules a model must meet to become champion. Pure functions of numbers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.core.config import Config
from pipeline.core.errors import InputError
from pipeline.ops.metrics import TRIVIAL, goodness, retained


class PromoteConfig(Config):
    """Where models are registered, and what the champion must keep to."""

    registered_model: str = "sam-distillery"
    """Name in MLflow's registry."""
    min_box_miou_retained: float = 0.9
    """Least share of the teacher's mIoU with ground-truth boxes, in [0, 1]."""
    min_click_miou_retained: float = 0.85
    """Least share of the teacher's mIoU with one click, in [0, 1]."""
    max_latency_ms: float = 1000.0
    """Ceiling of the median latency, in milliseconds, on the machine that evaluated."""
    allow_below_trivial: bool = False
    """Take also a model whose mIoU is no better than a filled box's, an ellipse's or, by clicks, a fixed disc's."""
    prefer: Literal["latency_ms", "box_miou", "click_miou"] = "latency_ms"
    """What decides between models that meet the rules."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One rule and its outcome for a model."""

    name: str
    value: float | None
    limit: float | None
    """None if the reference was not measured."""
    holds: bool

    def __str__(self) -> str:
        """The rule in words, with the shortfall if it does not hold."""
        if self.limit is None:
            return f"{self.name} has no reference to compare with: run `dvc repro` and register again"
        if self.value is None:
            return f"{self.name} was not measured (limit {self.limit:.4g})"
        if self.holds:
            return f"{self.name} {self.value:.4g} passes {self.limit:.4g}"
        return f"{self.name} {self.value:.4g} misses {self.limit:.4g} by {abs(self.value - self.limit):.4g}"


def check(config: PromoteConfig, row: Mapping[str, Any], teacher: Mapping[str, Any]) -> list[Rule]:
    """Evaluate each rule for a model's leaderboard row, relative to the teacher's row."""
    rules = []
    for metric, limit in (
        ("box_miou", config.min_box_miou_retained),
        ("click_miou", config.min_click_miou_retained),
    ):
        share = retained(row.get(metric), teacher.get(metric))
        rules.append(
            Rule(name=f"{metric}_retained", value=share, limit=limit, holds=share is not None and share >= limit)
        )
    if not config.allow_below_trivial:
        for prompt, key in TRIVIAL.items():
            value, trivial = row.get(f"{prompt}_miou"), row.get(key)
            above = value is not None and trivial is not None and value > trivial
            rules.append(Rule(name=f"{prompt}_miou_above_trivial", value=value, limit=trivial, holds=above))
    latency = row.get("latency_ms")
    fast = latency is not None and latency <= config.max_latency_ms
    return [
        *rules,
        Rule(
            name="latency_ms",
            value=None if latency is None else float(latency),
            limit=config.max_latency_ms,
            holds=fast,
        ),
    ]


def best(config: PromoteConfig, rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The rows of the best student and of the teacher: fewest broken rules first, then the preferred metric.

    Raises:
        InputError: The leaderboard has no teacher or no student with an engine.
    """
    teachers = [row for row in rows if row.get("role") == "teacher"]
    students = [row for row in rows if row.get("role") == "student" and row.get("artifact")]
    if not teachers or not students:
        lack = "no teacher" if not teachers else "no student with an engine"
        raise InputError(f"artifacts/compare/leaderboard.json has {lack}: run `dvc repro` with one in params.yaml.")
    teacher = teachers[0]

    def order(row: Mapping[str, Any]) -> tuple[int, float]:
        broken = sum(not rule.holds for rule in check(config, row, teacher))
        value = row.get(config.prefer)
        if value is None:
            return broken, float("inf")
        return broken, -goodness(config.prefer, float(value))

    first: Mapping[str, Any] = min(students, key=order)
    return dict(first), dict(teacher)
