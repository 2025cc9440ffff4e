"""The leaderboard as text for a terminal."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.core.artifact import Refusal
from pipeline.ops.metrics import below_trivial

NOTHING = "-"


def share(value: float | None) -> str:
    """A share in percent."""
    return NOTHING if value is None else f"{100 * value:.1f} %"


def score(value: float | None) -> str:
    """An IoU."""
    return NOTHING if value is None else f"{value:.3f}"


def amount(value: float | None) -> str:
    """A quantity with three significant digits or all before the point, thousands apart."""
    if value is None:
        return NOTHING
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:,.{digits}f}".replace(",", "\u202f")


def large(value: float | None) -> str:
    """A count in thousands, millions or billions."""
    if value is None:
        return NOTHING
    for unit, name in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if abs(value) >= unit:
            return f"{value / unit:.{0 if value >= 100 * unit else 1}f}{name}"
    return f"{value:.0f}"


_COLUMNS: Mapping[str, tuple[str, Callable[[Any], str]]] = {
    "model": ("model", str),
    "precision": ("precision", str),
    "runtime": ("runtime", str),
    "box_miou": ("box mIoU", score),
    "box_retained": ("of teacher", share),
    "click_miou": ("click mIoU", score),
    "click_retained": ("of teacher", share),
    "latency_ms": ("latency ms", amount),
    "size_mib": ("size MiB", amount),
    "memory_mib": ("memory MiB", amount),
}
_NONE: Mapping[str, Refusal] = {}
_STRUCK = "\u0336"
"""Combines with the character before it."""
_WORDS = 3
"""Columns of words, set flush left; numbers stand flush right."""


def leaderboard_text(rows: Sequence[Mapping[str, Any]], refused: Mapping[str, Refusal] = _NONE) -> str:
    """The rows of leaderboard.json in columns, with rules between head, teacher, students and trivial masks.

    A latency that was measured on a busy machine is marked, and an mIoU that is no better than a trivial mask's.
    Candidates that were ``refused`` follow below a rule, struck out, each by its name with the rule that it missed.
    """
    head = [title for title, _ in _COLUMNS.values()]
    body = [[write(row.get(name)) for name, (_, write) in _COLUMNS.items()] for row in rows]
    busy = [i for i, row in enumerate(rows) if row.get("guarded") is False]
    for i in busy:
        body[i][list(_COLUMNS).index("latency_ms")] += " !"
    below = [(i, prompt) for i, row in enumerate(rows) for prompt in below_trivial(row)]
    for i, prompt in below:
        body[i][list(_COLUMNS).index(f"{prompt}_miou")] += " \u25bc"
    widths = [max(map(len, cells)) for cells in zip(head, *body, strict=True)]
    rule = "  ".join("─" * width for width in widths)
    lines = [_line(head, widths), rule]
    before = None
    for row, cells in zip(rows, body, strict=True):
        if before is not None and row.get("role") != before:
            lines.append(rule)
        lines.append(_line(cells, widths))
        before = row.get("role")
    if refused:
        lines.append(rule)
        lines += [f"{''.join(c + _STRUCK for c in name)}  refused by {refusal}" for name, refusal in refused.items()]
    if below:
        lines.append(
            "\u25bc no better than a mask that no model made: a filled box, an ellipse in it, a disc around the click"
        )
    if busy:
        lines.append("! timed while the machine was busy with other work: an upper bound")
    return "\n".join(lines)


def leaderboard_table(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """The rows of leaderboard.json with the columns of `leaderboard_text`, by their titles."""
    head = dict(zip(_COLUMNS, _unique([title for title, _ in _COLUMNS.values()]), strict=True))
    return [{head[name]: write(row.get(name)) for name, (_, write) in _COLUMNS.items()} for row in rows]


def _unique(titles: Sequence[str]) -> list[str]:
    """Titles that repeat, each with the one before it: a mapping has no two alike."""
    return [f"{titles[i - 1]} {t}" if titles.count(t) > 1 else t for i, t in enumerate(titles)]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    placed = zip(cells, widths, strict=True)
    return "  ".join(c.ljust(w) if i < _WORDS else c.rjust(w) for i, (c, w) in enumerate(placed)).rstrip()
