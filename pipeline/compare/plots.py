"""Plots: accuracy against cost with the Pareto front, accuracy by object size and by clicks, calibration."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

from pipeline.compare.drawing import ALPHAS, DASHES, MARKERS, Paint, Palette, Plot, colours, draw_one, label, legend
from pipeline.compare.evaluations import Evaluation
from pipeline.compare.leaderboard import Row, pareto_front
from pipeline.ops.metrics import BANDS

CLICKS = (1, 3, 5)
_LABEL_OFFSETS = ((9, 0), (9, 11), (9, -11), (-9, 0), (-9, 11), (-9, -11), (0, 13), (0, -13), (9, 22), (9, -22))
"""Offsets of a point's label in points (1/72 inch); the first without overlap is used."""


def draw(rows: Sequence[Row], evaluations: Sequence[Evaluation], directory: Path) -> list[Plot]:
    """Write each plot for which there is data as ``directory/<name>.png``, and return all for the report.

    Args:
        rows: The leaderboard.
        evaluations: In the order of ``rows``.
        directory: Created by the function.
    """
    directory.mkdir()
    plots: list[tuple[str, str, str, Paint]] = []
    if sum(row["latency_ms"] is not None for row in rows) > 1:
        note = "Median of one image with one box, end to end. Upper left is better; the line is the Pareto front."
        paint = partial(_against, rows, "latency_ms", "latency, ms")
        plots.append(("miou_latency", "Accuracy against latency", note, paint))
    note = "Size of the deployed files. Upper left is better; the line is the Pareto front."
    plots.append(("miou_size", "Accuracy against size", note, partial(_against, rows, "size_mib", "size, MiB")))
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
    return [draw_one(name, title, note, paint, directory) for name, title, note, paint in plots]


def click_names(fed: str) -> list[str]:
    """Names of the metrics of one, three and five clicks; one click has no previous mask to feed back."""
    return [f"click{n if n > 1 else ''}{fed if n > 1 else ''}_miou" for n in CLICKS]


def _against(rows: Sequence[Row], cost: str, title: str, axes: Axes, palette: Palette) -> None:
    shown = [row for row in rows if row[cost] is not None]
    colour = colours(rows, palette)
    costs, scores = [row[cost] for row in shown], [row["box_miou"] for row in shown]
    if max(costs) > 8 * min(costs) > 0:
        axes.set_xscale("log")
        axes.set_xlim(min(costs) / 1.6, max(costs) * 1.9)
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.xaxis.set_minor_formatter(lambda value, _: "")
    else:
        axes.set_xlim(0, 1.3 * max(costs) or 1)
    margin = max(0.02, 0.35 * (max(scores) - min(scores)))
    axes.set_ylim(min(scores) - margin, max(scores) + margin)
    edge = [(costs[i], scores[i]) for i in pareto_front(costs, scores)]
    axes.step(
        *zip(*edge, strict=True), where="post", color=palette.muted, linewidth=1, linestyle=(0, (3, 2.5)), zorder=2
    )
    for row, x, y in zip(shown, costs, scores, strict=True):
        axes.scatter(
            x,
            y,
            s=62,
            color=colour[row["model"]],
            marker=MARKERS.get(row["precision"], "o"),
            edgecolors=palette.ground,
            linewidths=1.2,
            zorder=3,
        )
    axes.set_xlabel(title, color=palette.muted, loc="left")
    axes.set_ylabel("box mIoU", color=palette.muted, loc="top")
    _name_points(axes, shown, costs, scores, palette)


def _name_points(axes: Axes, rows: Sequence[Row], xs: Sequence[float], ys: Sequence[float], palette: Palette) -> None:
    """Label each point where the label overlaps neither another label nor a point; omit it if there is no room."""
    figure = axes.get_figure(root=True)
    if figure is None:
        raise ValueError("axes must be on a figure")
    figure.canvas.draw()
    points = [axes.transData.transform((x, y)) for x, y in zip(xs, ys, strict=True)]
    frame, label_boxes = axes.get_window_extent(), list[Bbox]()
    for row, x, y, (px, py) in zip(rows, xs, ys, points, strict=True):
        style: dict[str, Any] = {"color": palette.ink, "fontsize": 8.5, "textcoords": "offset points", "va": "center"}
        style["bbox"] = {
            "facecolor": palette.ground,
            "edgecolor": "none",
            "pad": 1,
        }  # hides the Pareto front
        for dx, dy in _LABEL_OFFSETS:
            side = "left" if dx > 0 else "right" if dx < 0 else "center"
            text = axes.annotate(label(row), (x, y), (dx, dy), ha=side, **style)
            box = text.get_window_extent()
            others = [p for p in points if (p[0], p[1]) != (px, py)]
            inside = box.x0 >= frame.x0 and box.x1 <= frame.x1 and box.y0 >= frame.y0 and box.y1 <= frame.y1
            if inside and not box.count_overlaps(label_boxes) and not any(box.padded(4).contains(*p) for p in others):
                label_boxes.append(box)
                break
            text.remove()


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
