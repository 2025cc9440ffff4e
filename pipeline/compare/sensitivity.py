"""Sensitivity of each student's layers to quantization: tables and plots of `quantize`'s reports."""

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
from pipeline.compare.noise import differs
from pipeline.core.errors import InputError
from pipeline.core.untrusted import json_file

FILE = "sensitivity.json"


@dataclass(frozen=True)
class Sensitivity:
    """One student in one precision."""

    name: str
    images: int
    grid: Grid
    """mIoU with each group of layers kept in floating point."""
    plots: Sequence[Plot]
    keep: Sequence[str]
    """Layers suggested for ``quantize.keep``."""


def sensitivities(rows: Sequence[Row], quantize: Path, directory: Path) -> list[Sensitivity]:
    """Read the sensitivity reports of the leaderboard's students and write their plots as ``directory/<name>.png``.

    Args:
        rows: The leaderboard.
        quantize: Directory of `quantize`'s artifacts; those without a sensitivity report are skipped.
        directory: Directory of the plots.

    Raises:
        InputError: A report is damaged.
    """
    results = []
    for row in rows:
        path = quantize / str(row["model"]) / str(row["precision"]) / FILE
        if row["role"] == "student" and path.is_file():
            try:
                results.append(
                    _sensitivity(
                        f"{row['model']} {row['precision']}", json_file.load(path, remedy="Run `dvc repro`."), directory
                    )
                )
            except (ValueError, LookupError, TypeError) as error:
                raise InputError(f"{path} cannot be read ({error!r}): run `dvc repro`.") from None
    return results


def _sensitivity(name: str, report: Mapping[str, Any], directory: Path) -> Sensitivity:
    stem = "sensitivity_" + name.replace(" ", "_")
    worst = report["worst"][0]
    plots = [
        draw_one(
            f"{stem}_layers",
            f"Quantization noise by layer, {name}",
            "Signal-to-noise ratio of each layer's output, from the image to the embedding. Higher is better.",
            partial(_layers, report["layers"], set(report["suggested"]["keep"])),
            directory,
        ),
        draw_one(
            f"{stem}_worst",
            f"Input of the most sensitive layer, {name}",
            f"{worst['name']}: {100 * worst['beyond_range']:.2g} % of the values are clipped.",
            partial(_histogram, worst),
            directory,
        ),
    ]
    return Sensitivity(name, int(report["images"]), _grid(report), plots, report["suggested"]["keep"])


def _grid(report: Mapping[str, Any]) -> Grid:
    measures = {"box_miou": "Box mIoU", "click_miou": "Click mIoU", "embedding_cosine": "Cosine of embeddings"}
    quantized = report["lowered"]
    lines = [Line([Cell(text="none quantized", value="0"), _count(0), *_figures(report["fp32"], measures)])]
    lines += [
        Line([Cell(text="all quantized", value="1"), _count(len(report["layers"])), *_figures(quantized, measures)])
    ]
    for group in report["groups"]:
        name = Cell(text=f"all but {group['name']}", value=f"2{group['name']}")
        count = _count(len(report["layers"]) - int(group["layers"]))
        lines.append(Line([name, count, *_figures(group, measures, quantized)]))
    suggested = report["suggested"]
    name = Cell(text="all but the suggested layers", value="3")
    count = _count(len(report["layers"]) - len(suggested["keep"]))
    lines.append(Line([name, count, *_figures(suggested, measures, quantized)]))
    columns = [Column(title="Quantized", words=True, less_is_better=True), Column(title="Layers")]
    return Grid(columns=[*columns, *(Column(title=title) for title in measures.values())], lines=lines)


def _count(layers: int) -> Cell:
    return Cell(text=str(layers), value=float(layers))


def _figures(
    figures: Mapping[str, Any], measures: Mapping[str, str], reference: Mapping[str, float] | None = None
) -> list[Cell]:
    """Cells of one line; those that differ from ``reference`` when rounded also show the difference."""
    cells = []
    for measure in measures:
        value = figures[measure]
        if reference is None or table.score(value) == table.score(reference[measure]):
            cells.append(number(value))
            continue
        tone: Tone = "better" if value > reference[measure] else "worse"
        tone = tone if differs(measure, value, reference[measure]) else ""
        sign = "+" if value > reference[measure] else "\u2212"
        below = f"{sign}{table.score(abs(value - reference[measure]))}"
        cells.append(Cell(text=table.score(value), value=value, below=below, tone=tone))
    return cells


def _layers(layers: Sequence[Mapping[str, Any]], keep: set[str], axes: Axes, palette: Palette) -> None:
    numbers = range(1, len(layers) + 1)
    lines = (("accumulated_snr_db", "all layers quantized", 0), ("snr_db", "only this layer quantized", 1))
    for measure, title, series in lines:
        axes.plot(
            numbers,
            [layer[measure] for layer in layers],
            color=palette.series[series],
            marker="o",
            markersize=2.5,
            linewidth=1.2,
            label=title,
        )
    points = [(n, layer["snr_db"]) for n, layer in zip(numbers, layers, strict=True) if layer["name"] in keep]
    if points:
        xs, ys = zip(*points, strict=True)
        axes.scatter(xs, ys, s=40, color=palette.series[2], zorder=3, label="suggested to keep")
    axes.set_ylim(bottom=min(0.0, *(layer["accumulated_snr_db"] for layer in layers)))
    axes.set_xlabel("layer", color=palette.muted, loc="left")
    axes.set_ylabel("dB", color=palette.muted, loc="top")
    legend(axes, palette)


def _histogram(worst: Mapping[str, Any], axes: Axes, palette: Palette) -> None:
    axes.stairs(worst["counts"], worst["edges"], fill=True, color=palette.series[1])
    for edge, title in ((worst["range"], "quantized range"), (-worst["range"], "")):
        axes.axvline(edge, color=palette.series[2], linewidth=1.2, label=title or None)
    axes.set_yscale("log")
    axes.set_xlabel("activation", color=palette.muted, loc="left")
    axes.set_ylabel("count", color=palette.muted, loc="top")
    legend(axes, palette)
