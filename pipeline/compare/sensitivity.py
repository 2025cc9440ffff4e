"""Which layers of each student suffer from rounding: tables and plots of what `quantize` measured."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from pipeline.compare import table
from pipeline.compare.drawing import Palette, Plot, draw_one, legend
from pipeline.compare.grid import Cell, Column, Grid, Line, Tone, number
from pipeline.compare.leaderboard import Row
from pipeline.core.errors import InputError

FILE = "sensitivity.json"


@dataclass(frozen=True)
class Sensitivity:
    """One student in one precision."""

    name: str
    images: int
    grid: Grid
    """mIoU with each group of layers left in floating point."""
    plots: Sequence[Plot]
    keep: Sequence[str]
    """Layers to name in ``quantize.keep``."""


def sensitivities(rows: Sequence[Row], quantize: Path, directory: Path) -> list[Sensitivity]:
    """What there is for the models of the leaderboard; each plot is also written as ``directory/<name>.png``.

    Args:
        rows: The leaderboard.
        quantize: The directory of `quantize`'s artifacts; those made without a sensitivity report are passed over.
        directory: Where plots go.

    Raises:
        InputError: A report is damaged.
    """
    found = []
    for row in rows:
        path = quantize / str(row["model"]) / str(row["precision"]) / FILE
        if row["role"] == "student" and path.is_file():
            try:
                found.append(_one(f"{row['model']} {row['precision']}", json.loads(path.read_text()), directory))
            except (ValueError, LookupError, TypeError) as error:
                raise InputError(f"{path} cannot be read ({error!r}): make it anew (`dvc repro`).") from None
    return found


def _one(name: str, report: Mapping[str, Any], directory: Path) -> Sensitivity:
    stem = "sensitivity_" + name.replace(" ", "_")
    worst = report["worst"][0]
    plots = [
        draw_one(
            f"{stem}_layers",
            f"Noise of rounding, {name}",
            "Signal to noise of each layer's output, from the image to the embedding. Higher is better.",
            partial(_layers, report["layers"], set(report["suggested"]["keep"])),
            directory,
        ),
        draw_one(
            f"{stem}_worst",
            f"What the worst layer reads, {name}",
            f"{worst['name']}: {100 * worst['beyond_range']:.2g} % of the values lie outside its range.",
            partial(_histogram, worst),
            directory,
        ),
    ]
    return Sensitivity(name, int(report["images"]), _grid(report), plots, report["suggested"]["keep"])


def _grid(report: Mapping[str, Any]) -> Grid:
    measures = {"box_miou": "Box mIoU", "click_miou": "Click mIoU", "embedding_cosine": "Cosine of embeddings"}
    lowered = report["lowered"]
    lines = [Line([Cell(text="nothing rounded", value="0"), _count(0), *_figures(report["fp32"], measures)])]
    lines += [Line([Cell(text="all rounded", value="1"), _count(len(report["layers"])), *_figures(lowered, measures)])]
    for group in report["groups"]:
        name = Cell(text=f"all but {group['name']}", value=f"2{group['name']}")
        count = _count(len(report["layers"]) - int(group["layers"]))
        lines.append(Line([name, count, *_figures(group, measures, lowered)]))
    kept = report["suggested"]
    name = Cell(text="all but those suggested to keep", value="3")
    count = _count(len(report["layers"]) - len(kept["keep"]))
    lines.append(Line([name, count, *_figures(kept, measures, lowered)]))
    columns = [Column(title="Rounded", words=True, less_is_better=True), Column(title="Layers")]
    return Grid(columns=[*columns, *(Column(title=title) for title in measures.values())], lines=lines)


def _count(layers: int) -> Cell:
    return Cell(text=str(layers), value=float(layers))


def _figures(
    found: Mapping[str, Any], measures: Mapping[str, str], against: Mapping[str, float] | None = None
) -> list[Cell]:
    """Cells of one line; beside ``against`` those that differ visibly say by how much."""
    cells = []
    for measure in measures:
        value = found[measure]
        if against is None or table.score(value) == table.score(against[measure]):
            cells.append(number(value))
            continue
        tone: Tone = "better" if value > against[measure] else "worse"
        sign = "+" if value > against[measure] else "\u2212"
        below = f"{sign}{table.score(abs(value - against[measure]))}"
        cells.append(Cell(text=table.score(value), value=value, below=below, tone=tone))
    return cells


def _layers(layers: Sequence[Mapping[str, Any]], keep: set[str], axes: Axes, palette: Palette) -> None:
    places = range(1, len(layers) + 1)
    lines = (("accumulated_snr_db", "all layers rounded", 0), ("snr_db", "this layer alone", 1))
    for measure, says, series in lines:
        axes.plot(
            places,
            [layer[measure] for layer in layers],
            color=palette.series[series],
            marker="o",
            markersize=2.5,
            linewidth=1.2,
            label=says,
        )
    kept = [(place, layer["snr_db"]) for place, layer in zip(places, layers, strict=True) if layer["name"] in keep]
    if kept:
        xs, ys = zip(*kept, strict=True)
        axes.scatter(xs, ys, s=40, color=palette.series[2], zorder=3, label="suggested to keep")
    axes.set_ylim(bottom=min(0.0, *(layer["accumulated_snr_db"] for layer in layers)))
    axes.set_xlabel("layer", color=palette.muted, loc="left")
    axes.set_ylabel("dB", color=palette.muted, loc="top")
    legend(axes, palette)


def _histogram(worst: Mapping[str, Any], axes: Axes, palette: Palette) -> None:
    axes.stairs(worst["counts"], worst["edges"], fill=True, color=palette.series[1])
    for edge, says in ((worst["range"], "range that is rounded"), (-worst["range"], "")):
        axes.axvline(edge, color=palette.series[2], linewidth=1.2, label=says or None)
    axes.set_yscale("log")
    axes.set_xlabel("activation", color=palette.muted, loc="left")
    axes.set_ylabel("count", color=palette.muted, loc="top")
    legend(axes, palette)
