"""Figures that papers publish, read from ``published.json``, set beside what was measured.

Data and protocol nearly always differ: the marks say how. A measure's name decides which published column it stands
under; boxes of a detector must therefore be named as there (``coco_vitdet``, ``lvis_vitdet``, ``coco_yolov8``, ...).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from pipeline.compare.grid import Cell, Column, Grid, Line, Section
from pipeline.compare.leaderboard import Row

_FILE = Path(__file__).with_name("published.json")
_MADE_BY = {
    "P": "text of the paper",
    "C": "README or code of the public repository",
    "D": "derived from what the paper states",
}


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class PublishedColumn(_Strict):
    """A column of a paper's table."""

    title: str
    metric: str | None
    """Ours that stands under it; None where we have none."""
    scale: float
    """The published figure is ours times this."""
    digits: int


class PublishedRow(_Strict):
    """A model in a paper's table."""

    model: str
    ours: str | None
    """The same model's name in `pipeline.models`."""
    values: list[float | None]
    mark: str | None
    """Where this row is from, if not from where the table is."""


class PublishedTable(_Strict):
    """A paper's table, or the part of it that is on one dataset."""

    paper: str
    place: str
    says: str
    family: str
    """Beginning of the names of our students that the paper is about."""
    data: str
    images: list[int]
    """How many images that dataset has: all, and those with instances. Empty where accuracy is not in the table."""
    protocol: str
    differs: str
    """How our protocol differs, wherever it is run; empty if it does not."""
    machine: str
    """What latency was measured on; empty where there is none."""
    mark: str
    columns: list[PublishedColumn]
    rows: list[PublishedRow]


class Paper(_Strict):
    """A source."""

    title: str
    arxiv: str


class Published(_Strict):
    """All of ``published.json``."""

    papers: dict[str, Paper]
    tables: list[PublishedTable]


def read() -> Published:
    """The figures as they ship with the project."""
    return Published.model_validate_json(_FILE.read_text())


def beside_measured(rows: Sequence[Row], dataset: Mapping[str, float]) -> Section | None:
    """The published tables that anything was measured for: figures of the paper first, then ours, with marks.

    Args:
        rows: The leaderboard.
        dataset: Counts of the dataset, as `prepare` left them.
    """
    published = read()
    grids = [_grid(published.papers[t.paper], t, rows, dataset) for t in published.tables]
    note = (
        "Rows of the paper come first, then those measured here. A letter marks where data, model, precision or "
        "protocol is not the paper's: such rows can be read beside it, not against it."
    )
    kept = [grid for grid in grids if grid is not None]
    return Section(title="Published and measured", note=note, grids=kept) if kept else None


def _grid(paper: Paper, table: PublishedTable, rows: Sequence[Row], dataset: Mapping[str, float]) -> Grid | None:
    measured = [
        row
        for row in rows
        if (row["role"] == "teacher" or str(row["model"]).startswith(table.family))
        and any(row.get(column.metric or "") is not None for column in table.columns)
    ]
    if not any(row["role"] == "student" for row in measured):
        return None
    notes = dict[str, str]()
    lines = [
        Line([Cell(text=r.model, value=r.model, below=_MADE_BY[r.mark or table.mark]), *_values(table, r.values)],
             "published")
        for r in table.rows
    ]  # fmt: skip
    for row in measured:
        marks = "".join(sorted(_mark(notes, text) for text in _differences(table, row, dataset)))
        name = Cell(text=row["model"], value=row["model"], below=f"measured · {row['precision']}", marks=marks)
        ours = [None if c.metric is None else row.get(c.metric) for c in table.columns]
        scaled = [None if v is None else v * c.scale for v, c in zip(ours, table.columns, strict=True)]
        lines.append(Line([name, *_values(table, scaled)], row["role"]))
    columns = [Column(title="Model", words=True, less_is_better=True)]
    columns += [Column(title=c.title, less_is_better="ms" in c.title or "MB" in c.title) for c in table.columns]
    caption = f"{paper.title}, arXiv {paper.arxiv}, {table.place}. {table.data}. {table.protocol}"
    return Grid(title=table.says, caption=caption, columns=columns, lines=lines, notes=notes)


def _values(table: PublishedTable, values: Sequence[float | None]) -> list[Cell]:
    pairs = zip(values, table.columns, strict=True)
    return [Cell(text="-" if v is None else f"{v:,.{c.digits}f}", value=v) for v, c in pairs]


def _mark(notes: dict[str, str], text: str) -> str:
    """The letter of a note; a new one for a new text."""
    known = {said: letter for letter, said in notes.items()}
    letter = known.get(text) or chr(ord("a") + len(notes))
    notes[letter] = text
    return letter


def _differences(table: PublishedTable, row: Mapping[str, Any], dataset: Mapping[str, float]) -> list[str]:
    """How what was measured here is not what the paper measured."""
    images = int(dataset.get("validation_images", 0))
    found = []
    if table.images and images not in table.images:
        found.append(f"other data: the {images} images of this dataset's validation split, not {table.data}")
    if row["model"] not in {r.ours for r in table.rows}:
        found.append("other model: not one that the paper reports under this name")
    if row["precision"] != "fp32":
        found.append(f"other precision: {row['precision']}, the published accuracy is of unquantized models")
    if table.machine:
        found.append(f"other machine: measured here with {row['runtime']}, published for {table.machine}")
    return [*found, *([f"other protocol: {table.differs}"] if table.differs else [])]
