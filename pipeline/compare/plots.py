"""Plots: accuracy against cost with the Pareto front, accuracy by object size and by clicks, calibration."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes

from pipeline.compare.drawing import (
    ALPHAS,
    DASHES,
    MARKERS,
    SIZE_IN,
    Paint,
    Palette,
    Plot,
    colours,
    draw_one,
    label,
    legend,
)
from pipeline.compare.evaluations import Evaluation
from pipeline.compare.leaderboard import Row
from pipeline.compare.scatter import against_cost
from pipeline.ops.metrics import BANDS

CLICKS = (1, 3, 5)
AGAINST_COST = ("box_latency", "click_latency", "box_size", "click_size")
"""Names of the plots of accuracy against cost, the most telling first."""
_COST_SIZE_IN = (5.4, 3.9)


def draw(rows: Sequence[Row], evaluations: Sequence[Evaluation], directory: Path) -> list[Plot]:
    """Write each plot for which there is data as ``directory/<name>.png``, and return all for the report.

    Args:
        rows: The leaderboard.
        evaluations: In the order of ``rows``.
        directory: Created by the function.
    """
    directory.mkdir()
    plots: list[tuple[str, str, str, Paint]] = []
    timed = sum(row["latency_ms"] is not None for row in rows) > 1
    for cost, words in (("latency_ms", "latency, ms"), ("size_mib", "size, MiB")):
        if cost == "latency_ms" and not timed:
            continue
        note = "Median of one image with one box, end to end." if timed and cost == "latency_ms" else "Deployed files."
        note += " Upper left is better; the dashed line is the Pareto front."
        for prompt, title in (("box", "Boxes"), ("click", "One click")):
            name, axis = f"{prompt}_{cost.partition('_')[0]}", words.partition(",")[0]
            paint = partial(against_cost, rows, prompt, cost, words)
            plots.append((name, f"{title}: accuracy against {axis}", note, paint))
    for prompt, title in (("box", "With a ground-truth box"), ("click", "With one click")):
        note = f"{title}; objects of up to 32², up to 96², and more than 96² pixels."
        plots.append((f"{prompt}_bands", f"Accuracy by object size, {prompt}", note, partial(_bands, rows, prompt)))
    for fed, title in (("", "clicks only"), ("_fed", "mask fed back")):
        if any(row.get(name) is not None for row in rows for name in click_names(fed)[1:]):
            note = "Each click in the mask's largest error" + ("; the previous mask is an input too." if fed else ".")
            plots.append((f"clicks{fed}", f"Accuracy by clicks, {title}", note, partial(_clicks, rows, fed)))
    for prompt in ("box", "click"):
        if any(e.calibration.get(prompt) for e in evaluations):
            note = "Predicted IoU against true IoU; the diagonal is perfect calibration."
            paint = partial(_calibration, rows, [e.calibration.get(prompt, []) for e in evaluations])
            plots.append((f"{prompt}_calibration", f"Predicted against true IoU, {prompt}", note, paint))
    return [
        draw_one(name, title, note, paint, directory, _COST_SIZE_IN if name in AGAINST_COST else SIZE_IN)
        for name, title, note, paint in plots
    ]


def click_names(fed: str) -> list[str]:
    """Names of the metrics of one, three and five clicks; one click has no previous mask to feed back."""
    return [f"click{n if n > 1 else ''}{fed if n > 1 else ''}_miou" for n in CLICKS]


def _bands(rows: Sequence[Row], prompt: str, axes: Axes, palette: Palette) -> None:
    colour = colours(rows, palette)
    width = 0.78 / len(rows)
    for i, row in enumerate(rows):
        values = [row[f"{prompt}_miou_{band}"] or 0.0 for band in BANDS]
        positions = [b + (i - (len(rows) - 1) / 2) * width for b in range(len(BANDS))]
        thickness = width * (0.86 if len(rows) < 8 else 0.95)
        axes.bar(positions, values, thickness, color=palette.ground)  # hides the grid behind transparent bars
        axes.bar(
            positions,
            values,
            thickness,
            color=colour[row["model"]],
            alpha=ALPHAS.get(row["precision"], 1.0),
            label=label(row),
        )
        if len(rows) <= 4:
            for position, value in zip(positions, values, strict=True):
                if value:
                    text = f"{value:.2f}"[1:] if value < 0.995 else "1"
                    axes.annotate(
                        text, (position, value), (0, 3), textcoords="offset points", ha="center",
                        color=palette.muted, fontsize=8,
                    )  # fmt: skip
    axes.set_xticks(range(len(BANDS)), BANDS)
    axes.set_ylim(0, 1)
    axes.set_ylabel("mIoU", color=palette.muted, loc="top")
    legend(axes, palette)


def _clicks(rows: Sequence[Row], fed: str, axes: Axes, palette: Palette) -> None:
    colour = colours(rows, palette)
    # Both plots of clicks share one scale, so that they can be compared.
    values = [row[n] for row in rows for f in ("", "_fed") for n in click_names(f) if row.get(n) is not None]
    margin = max(0.02, 0.1 * (max(values) - min(values)))
    for row in rows:
        scores = [(n, row[m]) for n, m in zip(CLICKS, click_names(fed), strict=True) if row.get(m) is not None]
        if scores:
            _line(axes, palette, row, colour[row["model"]], [n for n, _ in scores], [y for _, y in scores])
    axes.set_xticks(CLICKS)
    axes.set_xlim(0.7, 5.3)
    axes.set_ylim(min(values) - margin, max(values) + margin)
    axes.set_xlabel("clicks", color=palette.muted, loc="left")
    axes.set_ylabel("mIoU", color=palette.muted, loc="top")
    legend(axes, palette)


def _calibration(rows: Sequence[Row], bins: Sequence[Any], axes: Axes, palette: Palette) -> None:
    colour = colours(rows, palette)
    axes.plot([0, 1], [0, 1], color=palette.muted, linewidth=1, linestyle=(0, (3, 2.5)))
    for row, row_bins in zip(rows, bins, strict=True):
        occupied = [b for b in row_bins if b["count"]]
        if occupied:
            xs, ys = [b["predicted"] for b in occupied], [b["iou"] for b in occupied]
            _line(axes, palette, row, colour[row["model"]], xs, ys)
    axes.set_xlim(0, 1.03)
    axes.set_ylim(0, 1.03)
    axes.set_xlabel("predicted IoU", color=palette.muted, loc="left")
    axes.set_ylabel("true IoU", color=palette.muted, loc="top")
    legend(axes, palette)


def _line(axes: Axes, palette: Palette, row: Row, colour: str, xs: Sequence[int | float], ys: Sequence[float]) -> None:
    axes.plot(
        xs,
        ys,
        color=colour,
        linestyle=DASHES.get(row["precision"], "-"),
        linewidth=1.6,
        marker=MARKERS.get(row["precision"], "o"),
        markersize=5,
        markeredgecolor=palette.ground,
        markeredgewidth=0.7,
        label=label(row),
    )
