"""The gate's verdict as a table: for the terminal, MLflow and Prefect."""

from collections.abc import Mapping
from typing import Any

from pipeline.ops.gate import Rule
from pipeline.promote.gate import Verdict

COLUMNS = ("rule", "value", "limit", "margin", "interval", "passed")


def rows(verdict: Verdict) -> list[dict[str, str]]:
    """One row of texts per rule, with the keys of `COLUMNS`."""
    return [
        {
            "rule": rule.name,
            "value": _number(rule.value),
            "limit": "" if rule.limit is None else f"{'≤' if rule.ceiling else '≥'} {_number(rule.limit)}",
            "margin": "" if rule.margin is None else f"{rule.margin:+.4g}",
            "interval": "" if rule.interval is None else f"[{rule.interval[0]:.4f}, {rule.interval[1]:.4f}]",
            "passed": "yes" if rule.holds else "no",
        }
        for rule in verdict.rules
    ]


def text(verdict: Verdict) -> str:
    """A table with aligned columns; notes of rules follow it."""
    body = [[row[name] for name in COLUMNS] for row in rows(verdict)]
    widths = [max(map(len, cells)) for cells in zip(COLUMNS, *body, strict=True)]
    lines = [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)) for line in [COLUMNS, *body]
    ]
    lines.insert(1, "  ".join("─" * width for width in widths))
    notes = [f"{rule.name}: {rule.note}" for rule in verdict.rules if rule.note]
    return "\n".join(line.rstrip() for line in [*lines, *notes])


def record(verdict: Verdict, model: str) -> dict[str, Any]:
    """The verdict as JSON."""
    return {
        "model": model,
        "challenger": verdict.challenger,
        "champion": verdict.champion,
        "passed": verdict.passed,
        "rules": [_rule(rule) for rule in verdict.rules],
    }


def metrics(verdict: Verdict) -> dict[str, float]:
    """Values of the rules, and whether the model passed."""
    return {rule.name: rule.value for rule in verdict.rules if rule.value is not None}


def _rule(rule: Rule) -> Mapping[str, Any]:
    return {
        "name": rule.name,
        "value": rule.value,
        "limit": rule.limit,
        "margin": rule.margin,
        "interval": rule.interval,
        "holds": rule.holds,
        "says": str(rule),
    }


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
