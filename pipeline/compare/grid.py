"""Tables of the report: contents, sort keys and highlighting."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.compare import table
from pipeline.compare.leaderboard import Row

Tone = Literal["", "best", "better", "worse"]


@dataclass(frozen=True, kw_only=True)
class Column:
    """Header of a column."""

    title: str
    less_is_better: bool = False
    """Sort direction of the first click on the header: ascending if set."""
    words: bool = False


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One cell."""

    text: str
    value: float | str | None = None
    """Sort key; cells without one come last."""
    below: str = ""
    share: float | None = None
    """Length of the bar before ``below``; 1 is full."""
    tone: Tone = ""
    marks: str = ""
    """Letters of the table's notes that apply to the cell."""
    tag: str = ""
    """Short label beside the text."""
    code: bool = False
    columns: int = 1
    """Number of columns the cell spans."""


@dataclass(frozen=True)
class Line:
    """One row of kind ``teacher``, ``student``, ``baseline``, ``refused`` or ``published``."""

    cells: Sequence[Cell]
    kind: str = "student"


@dataclass(frozen=True, kw_only=True)
class Grid:
    """One table."""

    title: str = ""
    caption: str = ""
    columns: Sequence[Column]
    lines: Sequence[Line]
    notes: Mapping[str, str] = field(default_factory=dict)
    """Text of each note by its letter."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A section of the report: heading, note and tables."""

    title: str
    note: str
    grids: Sequence[Grid]


Write = Callable[[float | None], str]


def model_cell(row: Mapping[str, Any]) -> Cell:
    """Cell with a model's name, precision and runtime."""
    if row["role"] == "baseline":
        return Cell(text=row["model"], value=row["model"])
    about = ("teacher" if row["role"] == "teacher" else "", row["precision"], row["runtime"])
    below = " · ".join(filter(None, about))
    return Cell(text=row["model"], value=f"{row['model']} {row['precision']}", below=below)


def number(value: float | None, write: Write = table.score) -> Cell:
    """Cell with a number, sorted by its unrounded value."""
    return Cell(text=write(value), value=value)


def of_models(rows: Sequence[Row], columns: Mapping[str, tuple[str, Write, bool]]) -> Grid | None:
    """Table of the models and metrics for which there is at least one value; None if there is none.

    Args:
        rows: The leaderboard.
        columns: Title, format function and whether less is better, by metric.
    """
    names = [name for name in columns if any(row.get(name) is not None for row in rows)]
    if not names:
        return None
    shown = [row for row in rows if any(row.get(name) is not None for name in names)]
    return Grid(
        columns=[
            Column(title="Model", words=True, less_is_better=True),
            *(Column(title=columns[name][0], less_is_better=columns[name][2]) for name in names),
        ],
        lines=[
            Line([model_cell(row), *(number(row.get(name), columns[name][1]) for name in names)], row["role"])
            for row in shown
        ],
    )
