"""What quantization costs and brings: each student in reduced precision against the same student in fp32."""

from collections.abc import Mapping, Sequence

from pipeline.compare import table
from pipeline.compare.grid import Cell, Column, Grid, Line, Section, Tone, Write, number
from pipeline.compare.leaderboard import Row, measures
from pipeline.compare.measures import display_name
from pipeline.compare.noise import Scores, differs
from pipeline.ops.metrics import PAYS_FROM, lower_is_better

_WRITE: Mapping[str, Write] = {"ms": table.amount, "mib": table.amount, "s": table.amount, "macs": table.large}


def quantization(rows: Sequence[Row], scores: Sequence[Scores] = ()) -> Section | None:
    """Metrics of each student in reduced precision, with their difference to fp32. Metrics without any are left out.

    Args:
        rows: The models.
        scores: IoUs per object of each model; without, a fixed difference counts as noise.
    """
    fp32 = {row["model"]: i for i, row in enumerate(rows) if row["role"] == "student" and row["precision"] == "fp32"}
    pairs = [
        (fp32[row["model"]], i)
        for i, row in enumerate(rows)
        if row["role"] == "student" and row["precision"] != "fp32" and row["model"] in fp32
    ]
    columns = [Column(title="Metric", words=True, less_is_better=True)]
    columns += [Column(title=f"{rows[i]['model']} {rows[i]['precision']}") for _, i in pairs]
    lines = []
    for name in measures(rows):
        cells = [_change(name, rows[a], rows[b], (scores[a], scores[b]) if scores else None) for a, b in pairs]
        if any(cell.text not in ("0", table.NOTHING) for cell in cells):
            lines.append(Line([Cell(text=display_name(name), value=display_name(name)), *cells]))
    if not lines:
        return None
    note = (
        "Difference of each metric to the same student in fp32, with both values below. Green is better, red is worse, "
        "also for metrics where less is better; differences within noise have no colour. Noise is two standard errors "
        "of the differences per object for IoUs, 5 % for times and memory, and 0.01 for other scores."
    )
    return Section(title="Effect of quantization", note=note, grids=[Grid(columns=columns, lines=lines)])


def no_speedup(rows: Sequence[Row], processor: str | None) -> str:
    """Warning about students in reduced precision whose encoder is hardly faster than in fp32; empty without any."""
    fp32 = {row["model"]: row["encoder_ms"] for row in rows if row["role"] == "student" and row["precision"] == "fp32"}
    pairs = [
        (row, fp32[row["model"]], row["encoder_ms"])
        for row in rows
        if row["role"] == "student" and row["precision"] != "fp32"
        if row["encoder_ms"] is not None and fp32.get(row["model"]) is not None
    ]
    slow = [
        f"{row['model']} {row['precision']} encodes in {table.amount(own)} ms, fp32 in {table.amount(whole)} ms"
        for row, whole, own in pairs
        if whole < PAYS_FROM * own
    ]
    if not slow:
        return ""
    where = processor or "this machine"
    which = "" if len(slow) < len(pairs) else " for the only student" if len(pairs) == 1 else " for all students"
    return f"Reduced precision brings no speedup on {where}{which}: {'; '.join(slow)}."


def _change(name: str, before: Row, after: Row, scores: tuple[Scores, Scores] | None) -> Cell:
    a, b = before.get(name), after.get(name)
    if a is None or b is None:
        return number(None)
    write = _WRITE.get(name.rpartition("_")[2], table.large if max(abs(a), abs(b)) >= 1e3 else table.score)
    if write(a) == write(b):
        return Cell(text="0", value=b - a, below=write(a))
    tone: Tone = "better" if (b > a) != lower_is_better(name) else "worse"
    sign = "+" if b > a else "\u2212"
    return Cell(
        text=f"{sign}{write(abs(b - a))}",
        value=b - a,
        below=f"{write(a)} \u2192 {write(b)}",
        tone=tone if differs(name, a, b, scores) else "",
    )
