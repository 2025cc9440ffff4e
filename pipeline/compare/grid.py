"""A table of the report: what it shows, what it sorts by, what stands out."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pipeline.compare import table
from pipeline.compare.leaderboard import Row

Tone = Literal["", "best", "better", "worse"]


@dataclass(frozen=True, kw_only=True)
class Column:
    """The head of a column."""

    title: str
    less_is_better: bool = False
    """Which end a first click on the head brings up."""
    words: bool = False


@dataclass(frozen=True, kw_only=True)
class Cell:
    """One field."""

    text: str
    value: float | str | None = None
    """What it is sorted by; what has none comes last."""
    below: str = ""
    share: float | None = None
    """A bar in front of ``below``, full at 1."""
    tone: Tone = ""
    marks: str = ""
    """Letters of the notes that belong to it."""
    code: bool = False
    columns: int = 1
    """How many it spans."""


@dataclass(frozen=True)
class Line:
    """One row; its kind is ``teacher``, ``student``, ``baseline``, ``refused`` or ``published``."""

    cells: Sequence[Cell]
    kind: str = "student"


@dataclass(frozen=True, kw_only=True)
class Grid:
    """A whole table."""

    title: str = ""
    caption: str = ""
    columns: Sequence[Column]
    lines: Sequence[Line]
    notes: Mapping[str, str] = field(default_factory=dict)
    """Texts by letter."""


@dataclass(frozen=True, kw_only=True)
class Section:
    """A part of the page that is a heading, a few words and tables."""

    title: str
    note: str
    grids: Sequence[Grid]


Write = Callable[[float | None], str]


def model_cell(row: Mapping[str, Any]) -> Cell:
    """A model with what is needed to tell it from others."""
    about = ("teacher" if row["role"] == "teacher" else "", row["precision"], row["runtime"])
    below = " · ".join(filter(None, about))
    return Cell(text=row["model"], value=f"{row['model']} {row['precision']}", below=below)


def number(value: float | None, write: Write = table.score) -> Cell:
    """A number, sorted by its full precision."""
    return Cell(text=write(value), value=value)


def of_models(rows: Sequence[Row], columns: Mapping[str, tuple[str, Write, bool]]) -> Grid | None:
    """A table of all models that have any of some measures, with only the measures that any model has.

    Args:
        rows: The leaderboard.
        columns: Title, how to write it and whether less is better, by measure.
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
