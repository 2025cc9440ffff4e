"""The student to register: the one that `python -m pipeline register` takes, with the reason in words."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.compare import table
from pipeline.compare.leaderboard import Row
from pipeline.ops.gate import PromoteConfig, Rule, best, check

_PREFERRED = {
    "latency_ms": "the lowest latency",
    "box_miou": "the highest box mIoU",
    "click_miou": "the highest click mIoU",
}
_PROMPTS = {"box": "boxes", "click": "one click"}
_COSTS = {"latency_ms": ("latency", "ms"), "size_mib": ("size", "MiB"), "memory_mib": ("memory", "MiB")}


@dataclass(frozen=True)
class Choice:
    """The student that would be registered."""

    row: Row
    reason: str
    """One sentence."""
    verdicts: Sequence[tuple[bool, str]]
    """Each rule of section ``promote``: whether it holds, and its value and limit in words."""


def choose(config: PromoteConfig, rows: Sequence[Row]) -> Choice | None:
    """The student with the fewest broken rules, then the best preferred metric; None without students.

    Args:
        config: Section ``promote`` of params.yaml.
        rows: The leaderboard.
    """
    if not any(row["role"] == "student" for row in rows):
        return None
    first, teacher = best(config, rows)
    row = next(row for row in rows if row == first)
    rules = check(config, row, teacher)
    verdicts = [(rule.holds, _words(rule)) for rule in rules]
    return Choice(row, _reason(config, rows, teacher, rules), verdicts)


def _reason(config: PromoteConfig, rows: Sequence[Row], teacher: Row, rules: Sequence[Rule]) -> str:
    students = [row for row in rows if row["role"] == "student"]
    broken = sum(not rule.holds for rule in rules)
    equals = sum(sum(not rule.holds for rule in check(config, row, teacher)) == broken for row in students)
    preferred = f"it has {_PREFERRED[config.prefer]}"
    if not broken:
        if equals > 1:
            return f"Of the {equals} students that meet every rule for boxes, clicks and latency, {preferred}."
        alone = "It" if len(students) == 1 else f"It is the only one of {len(students)} students that"
        return f"{alone} meets every rule for boxes, clicks and latency."
    missed = f"{broken} of {len(rules)}"
    if equals > 1:
        return f"No student meets every rule. Of the {equals} that miss only {missed}, {preferred}."
    return f"No student meets every rule; it misses {'the fewest, ' if len(students) > 1 else ''}{missed}."


def _words(rule: Rule) -> str:
    """A rule's value and limit, for readers of the report."""
    prompt = _PROMPTS.get(rule.name.partition("_")[0], "")
    cost, unit = _COSTS.get(rule.name, ("", ""))
    if rule.limit is None:
        return f"{prompt}: no trivial mask was measured"
    if rule.value is None:
        return f"{prompt or cost}: not measured"
    if rule.name.endswith("_retained"):
        return f"{prompt}: {table.share(rule.value)} of the teacher's mIoU, at least {table.share(rule.limit)}"
    if rule.name.endswith("_above_trivial"):
        return f"{prompt}: mIoU {table.score(rule.value)}, must exceed a trivial mask's {table.score(rule.limit)}"
    return f"{cost}: {table.amount(rule.value)} {unit}, at most {table.amount(rule.limit)} {unit}"


def headline(row: Row | None, teacher: Row) -> Mapping[str, float]:
    """Metrics that `dvc exp show` lists: the chosen student's beside the teacher's; unknown ones are left out.

    Args:
        row: The chosen student; None without students.
        teacher: The teacher's row.
    """
    names = ("box_miou", "click_miou", "box_retained", "click_retained", "latency_ms", "size_mib")
    own: dict[str, Any] = {name: row[name] for name in names} if row else {}
    own |= {f"teacher_{name}": teacher[name] for name in ("box_miou", "click_miou")}
    return {name: float(value) for name, value in own.items() if value is not None}
