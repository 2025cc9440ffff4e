"""Accuracy against cost: one labelled point per model, the Pareto front, and what a trivial mask scores."""

import math
from collections.abc import Iterator, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, MaxNLocator, NullLocator
from matplotlib.transforms import Bbox, BboxBase

from pipeline.compare.drawing import MARKERS, Palette, colours, label
from pipeline.compare.leaderboard import Row, pareto_front
from pipeline.ops.metrics import TRIVIAL

_DISTANCES_PT = (9, 14, 20, 27, 35, 44, 54, 66, 80)
"""Distances of a label from its point, nearest first."""
_ANGLES = (0, 180, 90, 270, 30, 330, 150, 210, 60, 300, 120, 240)
"""Directions of a label from its point, in degrees."""
_LINE_FROM_PT = 14
"""Labels at this distance or further are connected to their points by a line."""
_LOG_FROM = 8
"""Ratio of the highest to the lowest cost from which the axis is logarithmic."""
_MIN_TICKS = 4


def against_cost(rows: Sequence[Row], prompt: str, cost: str, title: str, axes: Axes, palette: Palette) -> None:
    """Draw the mIoU of ``prompt`` against the metric ``cost``, whose axis is called ``title``."""
    score = f"{prompt}_miou"
    shown = [row for row in rows if row[cost] is not None and row[score] is not None]
    colour = colours(rows, palette)
    costs, scores = [row[cost] for row in shown], [row[score] for row in shown]
    trivial = rows[0].get(TRIVIAL[prompt])
    _scale_costs(axes, costs)
    lines = [*scores, *([] if trivial is None else [trivial])]
    margin = max(0.02, 0.22 * (max(lines) - min(lines)))
    axes.set_ylim(max(0, min(lines) - margin), max(lines) + margin)
    axes.yaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10], min_n_ticks=_MIN_TICKS))
    if trivial is not None:
        axes.axhline(trivial, color=palette.muted, linewidth=0.9, linestyle=(0, (1, 2)), zorder=1)
    edge = [(costs[i], scores[i]) for i in pareto_front(costs, scores)]
    axes.step(
        *zip(*edge, strict=True), where="post", color=palette.muted, linewidth=1, linestyle=(0, (4, 2.5)), zorder=2
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
            zorder=4,
        )
    axes.set_xlabel(title, color=palette.muted, loc="left")
    axes.set_ylabel(f"{prompt} mIoU", color=palette.muted, loc="top")
    _name_points(axes, [label(row) for row in shown], costs, scores, palette, trivial)


def log_ticks(low: float, high: float) -> list[float]:
    """Round values between two positive ones for a logarithmic axis, at least four where there are as many."""
    steps: tuple[tuple[float, ...], ...] = ((1,), (1, 2, 5), (1, 1.5, 2, 3, 5, 7))
    ticks: list[float] = []
    for multiples in steps:
        decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [value for d in decades for m in multiples if low <= (value := m * 10.0**d) <= high]
        if len(ticks) >= _MIN_TICKS:
            break
    return ticks


def _scale_costs(axes: Axes, costs: Sequence[float]) -> None:
    if max(costs) > _LOG_FROM * min(costs) > 0:
        low, high = min(costs) / 1.8, max(costs) * 1.8
        axes.set_xscale("log")
        axes.set_xlim(low, high)
        axes.xaxis.set_major_locator(FixedLocator(log_ticks(low, high)))
        axes.xaxis.set_minor_locator(NullLocator())
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    else:
        axes.set_xlim(0, 1.2 * max(costs) or 1)
        axes.xaxis.set_major_locator(MaxNLocator(7, steps=[1, 2, 2.5, 5, 10], min_n_ticks=_MIN_TICKS))


def _name_points(
    axes: Axes, names: Sequence[str], xs: Sequence[float], ys: Sequence[float], palette: Palette, trivial: float | None
) -> None:
    """Label every point where its label covers neither another label nor a point, else where it covers least."""
    figure = axes.get_figure(root=True)
    if figure is None:
        raise ValueError("axes must be on a figure")
    figure.canvas.draw()
    scale = figure.dpi / 72
    pixels = [tuple(axes.transData.transform((x, y))) for x, y in zip(xs, ys, strict=True)]
    occupied = [Bbox.from_bounds(x - 5 * scale, y - 5 * scale, 10 * scale, 10 * scale) for x, y in pixels]
    frame = axes.get_window_extent()
    style: dict[str, Any] = {"color": palette.ink, "fontsize": 8.5, "textcoords": "offset points", "zorder": 5}
    if trivial is not None:
        text = axes.annotate(
            "best trivial mask", (1, trivial), (-2, 3), xycoords=("axes fraction", "data"), ha="right", va="bottom",
            **style | {"color": palette.muted, "fontsize": 8},
        )  # fmt: skip
        occupied.append(text.get_window_extent())
        line_y = axes.transData.transform((0 if axes.get_xscale() == "linear" else xs[0], trivial))[1]
        occupied.append(Bbox.from_extents(frame.x0, line_y - scale, frame.x1, line_y + scale))
    for i in sorted(range(len(names)), key=lambda i: -pixels[i][0]):
        probe = axes.annotate(names[i], (xs[i], ys[i]), (0, 0), ha="center", va="center", **style)
        extent = probe.get_window_extent()
        probe.remove()
        others = [box for j, box in enumerate(occupied) if j != i]
        dx, dy = _offset(pixels[i], (extent.width, extent.height), others, frame, scale)
        far = math.hypot(max(0, abs(dx) - extent.width / 2 / scale), max(0, abs(dy) - extent.height / 2 / scale))
        line = {"arrowstyle": "-", "color": palette.muted, "linewidth": 0.7, "shrinkA": 0, "shrinkB": 4}
        axes.annotate(
            names[i], (xs[i], ys[i]), (dx, dy), ha="center", va="center",
            arrowprops=line if far >= _LINE_FROM_PT else None,
            bbox={"facecolor": palette.ground, "edgecolor": "none", "pad": 0.6, "alpha": 0.85},
            **style,
        )  # fmt: skip
        x, y = pixels[i][0] + dx * scale, pixels[i][1] + dy * scale
        width, height = extent.width + 4 * scale, extent.height + 2 * scale
        occupied.append(Bbox.from_bounds(x - width / 2, y - height / 2, width, height))
        if far >= _LINE_FROM_PT:
            occupied.append(_line_box(pixels[i], occupied[-1]))


def _offset(
    point: tuple[float, ...], size: tuple[float, float], occupied: Sequence[Bbox], frame: BboxBase, scale: float
) -> tuple[float, float]:
    """Offset of a label's centre from its point, in points (1/72 inch).

    Args:
        point: The point, in pixels.
        size: Width and height of the label, in pixels.
        occupied: Boxes of points and labels, in pixels.
        frame: Box of the axes, in pixels.
        scale: Pixels per point (1/72 inch).
    """
    best, least = (0.0, 0.0), math.inf
    for dx, dy in _candidates(size[0] / scale, size[1] / scale):
        x, y = point[0] + dx * scale, point[1] + dy * scale
        box = Bbox.from_bounds(x - size[0] / 2, y - size[1] / 2, *size)
        line = _line_box(point, box)
        outside = box.x0 < frame.x0 or box.x1 > frame.x1 or box.y0 < frame.y0 or box.y1 > frame.y1
        covered = sum(_overlap(box, other) + _overlap(line, other) for other in occupied)
        covered += size[0] * size[1] if outside else 0
        if covered == 0:
            return dx, dy
        if covered < least:
            best, least = (dx, dy), covered
    return best


def _line_box(point: tuple[float, ...], box: Bbox) -> Bbox:
    """Box of the line from a point to the nearest part of a label, two pixels wide at least."""
    x, y = min(max(point[0], box.x0), box.x1), min(max(point[1], box.y0), box.y1)
    left, right, bottom, top = min(x, point[0]), max(x, point[0]), min(y, point[1]), max(y, point[1])
    return Bbox.from_extents(left - 1, bottom - 1, right + 1, top + 1)


def _candidates(width: float, height: float) -> Iterator[tuple[float, float]]:
    """Offsets of a label's centre such that its edge is at a distance from the point, the nearest first."""
    for distance in _DISTANCES_PT:
        for angle in _ANGLES:
            across, up = math.cos(math.radians(angle)), math.sin(math.radians(angle))
            side = 0.0 if abs(across) < 1e-9 else math.copysign(width / 2, across)
            yield distance * across + side, distance * up + (0.0 if abs(up) < 1e-9 else math.copysign(height / 2, up))


def _overlap(a: Bbox, b: Bbox) -> float:
    """Common area of two boxes."""
    width, height = min(a.x1, b.x1) - max(a.x0, b.x0), min(a.y1, b.y1) - max(a.y0, b.y0)
    return max(0.0, float(width)) * max(0.0, float(height))
