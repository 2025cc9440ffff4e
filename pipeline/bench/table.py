"""Result of a comparison, as a table and as JSON."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass

from pipeline.bench.candidate import Candidate
from pipeline.bench.settings import Settings
from pipeline.evaluate.timing import Timing


@dataclass(frozen=True, kw_only=True)
class Row:
    """One measured candidate. Times are medians of calls, per element if `Candidate.divide` is set."""

    name: str
    runtime: str
    precision: str
    baseline: bool
    batch: int
    median_ms: float
    spread_ms: float
    """Distance between the quartiles."""
    speedup: float
    """The baseline's median divided by this one."""
    samples: int
    """Number of samples."""
    foreign_load: float | None
    """Mean share of the processors that other processes used during the samples."""
    guarded: bool
    """Whether all samples were taken while the machine was quiet."""
    parameters: int
    gmacs: float
    size_mib: float | None
    figures: Mapping[str, float]
    """Columns specific to the subject."""


def rows(candidates: Sequence[Candidate], timings: Sequence[Timing]) -> list[Row]:
    """Combine candidates with their times; the first of each group is its baseline."""
    first = {candidate.group: i for i, candidate in reversed(list(enumerate(candidates)))}
    units = [candidate.batch if candidate.divide else 1 for candidate in candidates]
    medians = [timing.median_ms / unit for timing, unit in zip(timings, units, strict=True)]
    return [
        Row(
            name=candidate.name,
            runtime=candidate.runtime,
            precision=candidate.precision,
            baseline=i == first[candidate.group],
            batch=candidate.batch,
            median_ms=medians[i],
            spread_ms=timing.spread_ms / units[i],
            speedup=medians[first[candidate.group]] / medians[i],
            samples=timing.samples,
            foreign_load=timing.foreign_load,
            guarded=timing.guarded,
            parameters=candidate.parameters,
            gmacs=candidate.gmacs,
            size_mib=candidate.size_mib,
            figures=candidate.figures(timing.median_ms),
        )
        for i, (candidate, timing) in enumerate(zip(candidates, timings, strict=True))
    ]


_COLUMNS: Mapping[str, Callable[[Row], str]] = {
    "name": lambda row: row.name,
    "runtime": lambda row: row.runtime,
    "precision": lambda row: row.precision,
    "batch": lambda row: str(row.batch),
    "median ms": lambda row: f"{row.median_ms:.2f}",
    "spread ms": lambda row: f"{row.spread_ms:.2f}",
    "speedup": lambda row: f"{row.speedup:.2f}" + ("*" if row.baseline else " "),
    "samples": lambda row: str(row.samples) + (" " if row.guarded else "!"),
    "foreign load": lambda row: "-" if row.foreign_load is None else f"{row.foreign_load:.0%}",
    "parameters": lambda row: f"{row.parameters / 1e6:.2f} M",
    "GMACs": lambda row: f"{row.gmacs:.2f}",
    "MiB": lambda row: "-" if row.size_mib is None else f"{row.size_mib:.1f}",
}
_WORDS = ("name", "runtime", "precision")
"""Left-aligned columns."""


@dataclass(frozen=True)
class Report:
    """All rows of a comparison; those of a group follow their baseline."""

    subject: str
    unit: str
    settings: Settings
    rows: Sequence[Row]
    left_out: Sequence[str]
    """Requested combinations that cannot be measured, with the reason."""

    def json(self) -> str:
        """The rows and settings as a JSON object."""
        flat = [{k: v for k, v in asdict(row).items() if k != "figures"} | dict(row.figures) for row in self.rows]
        report = {
            "subject": self.subject,
            "unit": self.unit,
            "settings": self.settings.model_dump(mode="json"),
            "rows": flat,
            "left_out": list(self.left_out),
        }
        return json.dumps(report, indent=2, allow_nan=False)

    def text(self) -> str:
        """The rows as a table, with notes on the measurement."""
        more = list(dict.fromkeys(key for row in self.rows for key in row.figures))
        cells = [[*_COLUMNS, *(key.replace("_", " ") for key in more)]]
        for row in self.rows:
            extra = [f"{row.figures[key]:.3f}" if key in row.figures else "-" for key in more]
            cells.append([*(show(row) for show in _COLUMNS.values()), *extra])
        widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
        lines = [
            "  ".join(
                cell.ljust(width) if heading in _WORDS else cell.rjust(width)
                for heading, cell, width in zip(cells[0], line, widths, strict=True)
            ).rstrip()
            for line in cells
        ]
        lines.insert(1, "  ".join("-" * width for width in widths))
        return "\n".join([*lines, "", *self._notes()])

    def _notes(self) -> list[str]:
        s = self.settings
        notes = [
            f"{self.subject}: time of {self.unit}; {s.threads} threads, {s.runs} runs of each row in {s.rounds} "
            f"rounds after {s.warmup} of warm-up; weights: {s.weights or 'fresh'}.",
            "* the baseline of the column speedup, for the rows down to the next one.",
        ]
        if not all(row.guarded for row in self.rows):
            notes.append(
                f"! others used more than {s.max_foreign_load:.0%} of the processors meanwhile: all samples count, "
                "and the row is no figure to quote. Run again on a quiet machine."
            )
        return notes
