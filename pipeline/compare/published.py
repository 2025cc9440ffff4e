"""Published results of papers, from ``published.json``, beside the measured ones.

Data and protocol nearly always differ; notes say how. Metrics are matched by name, so a detector's boxes must be named
as in that file (``coco_vitdet``, ``lvis_vitdet``, ``coco_yolov8``, ...).
"""

import re
from collections.abc import Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from pipeline.compare.grid import Cell, Column, Grid, Line, Section
from pipeline.compare.leaderboard import Row
from pipeline.ops.metrics import lower_is_better

_FILE = Path(__file__).with_name("published.json")
_SOURCES = {
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
    """Name of the corresponding metric of this project; None if there is none."""
    scale: float
    """Factor from this project's unit to the published one."""
    digits: int


class PublishedRow(_Strict):
    """A model in a paper's table."""

    model: str
    student: str | None
    """Name of the same model in `pipeline.models`; None if it is not implemented."""
    values: list[float | None]
    mark: str | None
    """Source of the row, if it differs from the table's."""
    precision: str = "fp32"
    """Precision of the weights and activations, by this project's names."""


class PublishedTable(_Strict):
    """A paper's table, or its part on one dataset."""

    paper: str
    location: str
    """Number of the table or section in the paper."""
    title: str
    family: str
    """Common prefix of the names of the students that the paper describes."""
    data: str
    images: list[int]
    """Number of images of the dataset: all, and those with instances. Empty for tables without accuracy."""
    digests: list[str] = []
    """SHA-256 of the dataset's official json, if known; decides instead of name and size."""
    protocol: str
    differs: str
    """How this project's protocol differs on any machine; empty if it does not."""
    machine: str
    """Machine on which latency was measured; empty if there is none."""
    mark: str
    columns: list[PublishedColumn]
    rows: list[PublishedRow]


class Paper(_Strict):
    """A paper cited by the tables."""

    title: str
    arxiv: str


class Published(_Strict):
    """Contents of ``published.json``."""

    papers: dict[str, Paper]
    tables: list[PublishedTable]


def read() -> Published:
    """Read the published results that ship with the project."""
    return Published.model_validate_json(_FILE.read_text())


def beside_measured(rows: Sequence[Row]) -> Section | None:
    """Published tables with at least one measured student: rows of the paper first, then measured rows with notes.

    A table shows the figures of the validation set of its size, else of its name (``coco``, ``lvis``), else of the
    first one; the note of a row says on what it was measured.

    Args:
        rows: The leaderboard.
    """
    published = read()
    grids = [_grid(published.papers[t.paper], t, rows) for t in published.tables]
    note = (
        "Rows of the paper come first, then measured rows. Letters mark rows whose data, model, precision or protocol "
        "differs from the paper's; these are not directly comparable."
    )
    available = [grid for grid in grids if grid is not None]
    return Section(title="Published and measured results", note=note, grids=available) if available else None


def _grid(paper: Paper, table: PublishedTable, rows: Sequence[Row]) -> Grid | None:
    known = {row.student for row in table.rows}
    measured = [
        row
        for row in rows
        if (row["role"] == "teacher" or str(row["model"]).startswith(table.family) or row["model"] in known)
        and any(row.get(column.metric or "") is not None for column in table.columns)
    ]
    if not any(row["role"] == "student" for row in measured):
        return None
    notes = dict[str, str]()
    lines = [
        Line([Cell(text=r.model, value=r.model, below=_SOURCES[r.mark or table.mark]), *_values(table, r.values)],
             "published")
        for r in table.rows
    ]  # fmt: skip
    for row in measured:
        prefix = _prefix(table, row)
        marks = "".join(sorted(_mark(notes, text) for text in _differences(table, row, prefix)))
        name = Cell(text=row["model"], value=row["model"], below=f"measured · {row['precision']}", marks=marks)
        own = "" if _is_detectors(table, prefix) else prefix
        values = [None if c.metric is None else row.get(own + c.metric) for c in table.columns]
        scaled = [None if v is None else v * c.scale for v, c in zip(values, table.columns, strict=True)]
        lines.append(Line([name, *_values(table, scaled)], row["role"]))
    columns = [Column(title="Model", words=True, less_is_better=True)]
    columns += [Column(title=c.title, less_is_better=lower_is_better(c.metric or "")) for c in table.columns]
    caption = f"{paper.title}, arXiv {paper.arxiv}, {table.location}. {table.data}. {table.protocol}"
    return Grid(title=table.title, caption=caption, columns=columns, lines=lines, notes=notes)


def _values(table: PublishedTable, values: Sequence[float | None]) -> list[Cell]:
    pairs = zip(values, table.columns, strict=True)
    return [Cell(text="-" if v is None else f"{v:,.{c.digits}f}", value=v) for v, c in pairs]


def _mark(notes: dict[str, str], text: str) -> str:
    """Letter of a note; a new text is added under the next letter."""
    letters = {note: letter for letter, note in notes.items()}
    letter = letters.get(text) or chr(ord("a") + len(notes))
    notes[letter] = text
    return letter


def _prefix(table: PublishedTable, row: Row) -> str:
    """Prefix of the data set whose figures a table shows: a detector's, the published one, one of its name, the first.

    Metrics of a detector's boxes have their data set's prefix already.
    """
    datasets: Mapping[str, Mapping[str, Any]] = row.get("datasets") or {}
    metrics = [column.metric for column in table.columns if column.metric]
    measured = [p for p in datasets if any(row.get(p + metric) is not None for metric in metrics)]
    return next(
        chain(
            (prefix for prefix in datasets if _is_detectors(table, prefix)),
            (prefix for prefix in measured if _is_published(table, datasets[prefix])),
            (prefix for prefix in measured if _has_name(table, datasets[prefix])),
        ),
        "",
    )


def _is_detectors(table: PublishedTable, prefix: str) -> bool:
    return bool(prefix) and any((column.metric or "").startswith(f"{prefix}ap") for column in table.columns)


def _has_name(table: PublishedTable, data: Mapping[str, Any]) -> bool:
    """Whether a data set is called as the table's, by the first word: ``coco`` and ``coco_val2017`` for COCO's."""
    name = {"instances_val2017": "coco"}.get(str(data["name"]), str(data["name"]))
    return table.data.lower().split()[0] == re.split(r"[^a-z]", name.lower())[0]


def _is_published(table: PublishedTable, data: Mapping[str, Any]) -> bool:
    """Whether a data set is the table's: by its json's digest if the official one is known, else name and size."""
    if table.digests:
        return data.get("source_digest") in table.digests
    return _has_name(table, data) and data["images"] in table.images


def _differences(table: PublishedTable, row: Row, prefix: str) -> list[str]:
    """Notes on how a measured row differs from the paper's measurement."""
    differences = []
    data = (row.get("datasets") or {}).get(prefix)
    if table.images and (data is None or not _is_published(table, data)):
        measured = "a set of unknown size" if data is None else f"{data['name']}, {data['images']:,} images"
        differences.append(f"other data: {measured}, not {table.data}")
    if table.images and data is not None and data["protocol"] != "published":
        differences.append(
            f"other protocol: {data['protocol']}, without crowd regions and small masks, with boxes and sizes of the "
            "masks instead of the annotations' own"
        )
    precisions = {r.precision for r in table.rows if r.student == row["model"]}
    if row["model"] not in {r.student for r in table.rows}:
        differences.append("other model: the paper reports none of this name")
    if row["precision"] not in (precisions or {"fp32"}):
        published = ", ".join(sorted(precisions or {"fp32"}))
        differences.append(f"other precision: {row['precision']}, published is {published}")
    if table.machine:
        differences.append(f"other machine: measured here with {row['runtime']}, published for {table.machine}")
    return [*differences, *([f"other protocol: {table.differs}"] if table.differs else [])]
