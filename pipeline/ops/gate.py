"""The rules a model must meet by itself to become champion. Pure functions of numbers.

Rules that compare a model with the champion or with its own fp32 are in `pipeline.promote.gate`.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from pydantic import Field

from pipeline.core.config import Config
from pipeline.core.errors import InputError
from pipeline.ops.metrics import PAYS_FROM, TRIVIAL, goodness, retained

Target = Literal["cpu", "gpu"]
"""What a model runs on. Each target has a champion of its own."""
TARGETS: Mapping[str, Target] = {"tensorrt": "gpu"}
"""Engine to target; other engines are for processors."""
Share = Annotated[float, Field(ge=0, le=1)]


class CeilingsConfig(Config):
    """Largest latency, size and memory of models for one target; null for none."""

    max_latency_ms: float | None = None
    """Median latency on the machine that evaluated, in milliseconds; null: `promote.max_latency_ms`."""
    max_size_mib: float | None = None
    """Size of the engine's files."""
    max_memory_mib: float | None = None
    """Peak memory of a prediction."""


class ChampionConfig(Config):
    """What a challenger must show against the champion, on the same instances."""

    prompts: Annotated[list[Literal["box", "click", "click3", "click5"]], Field(min_length=1)] = ["box", "click"]
    """Prompts whose IoUs are compared, over all instances and per size band."""
    confidence: Annotated[float, Field(ge=0.5, lt=1)] = 0.95
    """Confidence of the two-sided intervals, so half of the rest on each side. They hold simultaneously for all
    prompts, and for all prompts and size bands."""
    resamples: Annotated[int, Field(ge=100)] = 4000
    """Bootstrap resamples of the images."""
    seed: int = 0
    """Seed of the resamples."""
    min_images: Annotated[int, Field(ge=2)] = 10
    """A size band with instances in fewer images is not compared; with fewer images in all, nothing can be shown."""
    max_drop: Share = 0.001
    """A challenger is refused if its mIoU is lower by more than this beyond noise: the interval lies below."""
    speedup: Annotated[float, Field(ge=1)] = PAYS_FROM
    """A challenger that is not more accurate must be faster or smaller by this factor."""
    cheaper_within: Share = 0.01
    """Most mIoU that a faster or smaller challenger may lose, shown beyond noise: the interval lies above."""


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
    targets: dict[Target, CeilingsConfig] = {}
    """Ceilings per target, ``cpu`` (OpenVINO, ONNX Runtime) or ``gpu`` (TensorRT)."""
    max_precision_drop: Share | None = 0.02
    """Most mIoU that a lower precision may lose against fp32 of the same student, on the same instances: it is refused
    if it loses more beyond noise. Null disables the rule, which needs ``fp32`` in ``precisions``."""
    champion: ChampionConfig | None = ChampionConfig()
    """Comparison with the champion; null disables it."""
    allow_below_trivial: bool = False
    """Take also a model whose mIoU is no better than a filled box's, an ellipse's or, by clicks, a fixed disc's."""
    prefer: Literal["latency_ms", "box_miou", "click_miou"] = "latency_ms"
    """What decides between models that meet the rules."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One rule and its outcome for a model."""

    name: str
    value: float | None = None
    limit: float | None = None
    """None if the reference was not measured."""
    holds: bool
    ceiling: bool = False
    """Whether the limit is the largest value that passes, instead of the smallest."""
    interval: tuple[float, float] | None = None
    """Confidence interval of the value."""
    bound: Literal["low", "high"] = "high"
    """Bound of the interval that decides: ``high`` if only a shortfall beyond noise fails, ``low`` if the value must be
    above the limit beyond noise."""
    note: str = ""
    """Replaces the words of `__str__`."""

    @property
    def margin(self) -> float | None:
        """How far what decides, value or bound, is on the right side of the limit; negative on the wrong one."""
        if self.value is None or self.limit is None:
            return None
        if self.interval is not None:
            return self.interval[self.bound == "high"] - self.limit
        return self.limit - self.value if self.ceiling else self.value - self.limit

    def __str__(self) -> str:
        """The rule in words, with the shortfall if it does not hold."""
        if self.note:
            return f"{self.name}: {self.note}"
        if self.limit is None:
            return f"{self.name} has no reference to compare with: run `dvc repro` and register again"
        if self.value is None:
            return f"{self.name} was not measured (limit {self.limit:.4g})"
        interval = "" if self.interval is None else f" [{self.interval[0]:.4g}, {self.interval[1]:.4g}]"
        if self.holds:
            return f"{self.name} {self.value:.4g}{interval} passes {self.limit:.4g}"
        return f"{self.name} {self.value:.4g}{interval} misses {self.limit:.4g} by {abs(self.margin or 0.0):.4g}"


def target_of(engine: object) -> Target:
    """The target of an engine or runtime, by its name."""
    return TARGETS.get(str(engine), "cpu")


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
    return [*rules, *_ceilings(config, row)]


def _ceilings(config: PromoteConfig, row: Mapping[str, Any]) -> list[Rule]:
    """Latency, size and memory of a model against its target's ceilings; latency always has one."""
    own = config.targets.get(target_of(row.get("runtime")), CeilingsConfig())
    latency = config.max_latency_ms if own.max_latency_ms is None else own.max_latency_ms
    rules = []
    for name, limit in (("latency_ms", latency), ("size_mib", own.max_size_mib), ("memory_mib", own.max_memory_mib)):
        if limit is not None:
            value = None if row.get(name) is None else float(row[name])
            rules.append(
                Rule(name=name, value=value, limit=limit, holds=value is not None and value <= limit, ceiling=True)
            )
    return rules


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
