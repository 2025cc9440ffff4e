"""A plan as text: a Markdown table, the rates it rests on, and what this machine's disks lack."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from pipeline.plan.rates import Rate, Table

if TYPE_CHECKING:
    from pipeline.plan import Plan

_UNITS = ((1e12, "TB"), (1e9, "GB"), (1e6, "MB"), (1e3, "kB"))
_PERIODS = ((2 * 86400, 86400, "d"), (5400, 3600, "h"), (90, 60, "min"))


def as_text(plan: "Plan", table: Table) -> str:
    """The table, the rates and the missing disk."""
    kinds = {name: table.rates[name] for name in plan.rates}
    return "\n\n".join([_head(plan), markdown(plan), _rates(kinds), _disks(plan)])


def markdown(plan: "Plan") -> str:
    """Disk and time of each stage, and in all."""
    machines = [f"{m.gpus} GPU{'s' if m.gpus > 1 else ''}" if m.gpus else f"{m.cores} cores" for m in plan.machines]
    titles = ["stage", *(f"disk, {s.name}" for s in plan.scales)]
    titles += [f"{machine}, {scale.name}" for machine in machines for scale in plan.scales]
    stages = list(plan.bytes[plan.scales[0].name])
    rows = [_row(plan, stage) for stage in stages]
    total = ["**all**", *(size(sum(plan.bytes[s.name].values())) for s in plan.scales)]
    for index in range(len(plan.machines)):
        total += [duration(math.fsum(filter(None, plan.seconds[scale.name][index].values()))) for scale in plan.scales]
    return _aligned([titles, *rows, total])


def size(count: int) -> str:
    """Bytes with three digits."""
    for unit, name in _UNITS:
        if count >= unit:
            return f"{count / unit:.{max(0, 2 - len(str(int(count / unit))) + 1)}f} {name}"
    return f"{count} B" if count else "0"


def duration(seconds: float) -> str:
    """Seconds with two digits."""
    for least, unit, name in _PERIODS:
        if seconds >= least:
            value = seconds / unit
            return f"{value:.1f} {name}" if value < 10 else f"{value:,.0f} {name}"
    return f"{seconds:.0f} s" if seconds else "0"


def _row(plan: "Plan", stage: str) -> list[str]:
    sizes = [size(plan.bytes[scale.name][stage]) for scale in plan.scales]
    columns = [plan.seconds[scale.name][index] for index in range(len(plan.machines)) for scale in plan.scales]
    return [stage, *sizes, *(_time(seconds, stage) for seconds in columns)]


def _time(seconds: Mapping[str, float | None], stage: str) -> str:
    if stage not in seconds:
        return ""
    value = seconds[stage]
    return "-" if value is None else duration(value)


def _head(plan: "Plan") -> str:
    cores = ", ".join(f"{machine.cores} cores with {machine.gpus} GPU(s)" for machine in plan.machines if machine.gpus)
    images = ", ".join(f"{scale.name}: {scale.images:,} images" for scale in plan.scales)
    return f"{plan.preset}. {images}." + (f" {cores}." if cores else "")


def _rates(rates: dict[str, Rate]) -> str:
    rows = [["rate", "value", "source", "hardware", "origin"]]
    rows += [
        [name, f"{rate.value:,g} {rate.unit}", rate.source, rate.hardware, rate.origin] for name, rate in rates.items()
    ]
    gpu = [rate for name, rate in rates.items() if name.startswith("gpu.")]
    if gpu and not any(rate.source == "measured" for rate in gpu):
        note = "No rate of a GPU was measured: times on GPUs are right within a factor of three at best."
    else:
        note = "Times are estimates where a rate is one."
    return f"{note}\n\n{_aligned(rows)}"


def _disks(plan: "Plan") -> str:
    lines, fits = [], "fits on this machine's disks"
    for scale in plan.scales:
        missing = plan.missing[scale.name]
        lines.append(f"{scale.name}: {'; '.join(missing) if missing else fits}.")
    return "\n".join([*plan.refusals, *lines])


def _aligned(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in rows
    ]
    return "\n".join([lines[0], "|" + "|".join("-" * (width + 2) for width in widths) + "|", *lines[1:]])
