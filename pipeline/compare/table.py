"""The leaderboard as text for a terminal."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from pipeline.core.artifact import Refusal
from pipeline.ops.metrics import below_trivial

NOTHING = "-"


def share(value: float | None) -> str:
    """Format a share in percent."""
    return NOTHING if value is None else f"{100 * value:.1f} %"


def score(value: float | None) -> str:
    """Format an IoU with three decimals."""
    return NOTHING if value is None else f"{value:.3f}"


def amount(value: float | None) -> str:
    """Format a quantity with three significant digits or all integer digits, thousands separated."""
    if value is None:
        return NOTHING
    digits = 2 if abs(value) < 10 else 1 if abs(value) < 100 else 0
    return f"{value:,.{digits}f}".replace(",", "\u202f")


def large(value: float | None) -> str:
    """Format a count in thousands (k), millions (M) or billions (G)."""
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
"""Combining character that strikes out the one before it."""
_TEXT_COLUMNS = 3
"""Number of leading text columns, aligned left; numbers are aligned right."""


def leaderboard_text(rows: Sequence[Mapping[str, Any]], refused: Mapping[str, Refusal] = _NONE) -> str:
    """Format the rows of leaderboard.json as a table, with rules between header, teacher, students and trivial masks.

    Latencies measured on a busy machine and mIoUs no better than a trivial mask's are marked. ``refused`` candidates
    follow at the end, struck out, each with the gate that it failed.
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
        lines.append("\u25bc no better than a trivial mask: a filled box, an ellipse in it, or a disc around the click")
    if busy:
        lines.append("! measured on a busy machine: an upper bound")
    return "\n".join(lines)


def leaderboard_table(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, str]]:
    """Rows of leaderboard.json as mappings from the column titles of `leaderboard_text` to formatted values."""
    head = dict(zip(_COLUMNS, _unique([title for title, _ in _COLUMNS.values()]), strict=True))
    return [{head[name]: write(row.get(name)) for name, (_, write) in _COLUMNS.items()} for row in rows]


def _unique(titles: Sequence[str]) -> list[str]:
    """Prefix repeated titles with the preceding title, so that they can be keys."""
    return [f"{titles[i - 1]} {t}" if titles.count(t) > 1 else t for i, t in enumerate(titles)]


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    pairs = zip(cells, widths, strict=True)
    return "  ".join(c.ljust(w) if i < _TEXT_COLUMNS else c.rjust(w) for i, (c, w) in enumerate(pairs)).rstrip()
