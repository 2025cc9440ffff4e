"""Plots of the leaderboard: accuracy against latency and size, and accuracy by the size of objects.

Drawn twice: as SVG for the page, whose colours are the page's own variables, so that they follow its light and dark
scheme; and as PNG on white for elsewhere. Both repeat byte for byte.
"""

import io
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.transforms import Bbox

from pipeline.compare.leaderboard import Row
from pipeline.metrics import BANDS

_SIZE_IN = (4.5, 3.2)
_STYLE: Any = {
    "svg.hashsalt": "sam-distillery",
    "svg.fonttype": "none",
    "font.family": "DejaVu Sans",
    "font.size": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.axisbelow": True,
    "axes.labelpad": 8,
    "axes.unicode_minus": False,
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
}
_MARKERS = {"fp32": "o", "fp16": "s", "bf16": "^", "int8": "D"}
_ALPHAS = {"fp32": 1.0, "fp16": 0.8, "bf16": 0.8, "int8": 0.55}
_LABEL_PLACES = ((9, 0), (9, 11), (9, -11), (-9, 0), (-9, 11), (-9, -11), (0, 13), (0, -13), (9, 22), (9, -22))
"""Where a point's name may stand, in points from it; the first that is free."""


@dataclass(frozen=True)
class Palette:
    """Colours of a drawing."""

    ink: str
    muted: str
    grid: str
    ground: str
    series: tuple[str, ...]


PAPER = Palette(
    "#1c2024",
    "#5b6570",
    "#e3e7eb",
    "#ffffff",
    ("#7a8591", "#2f6fde", "#d9662b", "#2a9d73", "#a24fc0", "#c9a21a", "#d64573", "#1ba3b8"),
)
_PAGE = Palette("#000101", "#000102", "#000103", "#000104", tuple(f"#0002{i:02x}" for i in range(8)))
"""Stand-ins that are replaced by the page's variables."""
_VARIABLES = {_PAGE.ink: "ink", _PAGE.muted: "muted", _PAGE.grid: "line", _PAGE.ground: "card"} | {
    colour: f"series-{i}" for i, colour in enumerate(_PAGE.series)
}


@dataclass(frozen=True)
class Plot:
    """A finished plot."""

    name: str
    title: str
    note: str
    svg: str


def draw(rows: Sequence[Row], directory: Path) -> list[Plot]:
    """Write all plots there is data for as ``directory/<name>.png``, and return them for the page."""
    directory.mkdir()
    wanted: list[tuple[str, str, str, Callable[[Axes, Sequence[Row], Palette], None]]] = []
    if sum(row["latency_ms"] is not None for row in rows) > 1:
        note = "Median of one image with one box, end to end. Up and left is better."
        wanted.append(("miou_latency", "Accuracy against latency", note, _against("latency_ms", "latency, ms")))
    note = "Files that are deployed. Up and left is better."
    wanted.append(("miou_size", "Accuracy against size", note, _against("size_mib", "size, MiB")))
    for prompt, says in (("box", "ground-truth box"), ("click", "one click")):
        note = f"With a {says}; objects up to 32², up to 96², and of more pixels."
        title = f"Accuracy by size of objects, {prompt}"
        wanted.append((f"{prompt}_bands", title, note.replace("a one", "one"), _by_band(prompt)))
    plots = []
    for name, title, note, paint in wanted:
        with mpl.rc_context(_STYLE):
            _figure(rows, paint, PAPER, title).savefig(
                directory / f"{name}.png", dpi=200, metadata={"Software": None}, facecolor=PAPER.ground
            )
            stream = io.StringIO()
            page = _figure(rows, paint, _PAGE, None)
            page.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
        plots.append(Plot(name, title, note, _inline(stream.getvalue(), name)))
    return plots


def _figure(
    rows: Sequence[Row], paint: Callable[[Axes, Sequence[Row], Palette], None], palette: Palette, title: str | None
) -> Figure:
    figure = Figure(figsize=_SIZE_IN, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if title:
        axes.set_title(title, loc="left", color=palette.ink, fontsize=11.5, fontweight="bold", pad=12)
    axes.tick_params(which="both", colors=palette.muted, labelcolor=palette.muted, pad=6)
    axes.spines["bottom"].set_color(palette.grid)
    axes.grid(axis="y", color=palette.grid, linewidth=0.8)
    paint(axes, rows, palette)
    return figure


def _colours(rows: Sequence[Row], palette: Palette) -> dict[str, str]:
    """A colour per model; the teacher's is grey. More models than colours share them."""
    names = list(dict.fromkeys(row["model"] for row in rows))
    teachers = {row["model"] for row in rows if row["role"] == "teacher"}
    students = [name for name in names if name not in teachers]
    own = palette.series[1:]
    return dict.fromkeys(teachers, palette.series[0]) | {n: own[i % len(own)] for i, n in enumerate(students)}


def _against(cost: str, label: str) -> Callable[[Axes, Sequence[Row], Palette], None]:
    def paint(axes: Axes, rows: Sequence[Row], palette: Palette) -> None:
        shown = [row for row in rows if row[cost] is not None]
        colours = _colours(rows, palette)
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
        for row, x, y in zip(shown, costs, scores, strict=True):
            axes.scatter(
                x,
                y,
                s=62,
                color=colours[row["model"]],
                marker=_MARKERS.get(row["precision"], "o"),
                edgecolors=palette.ground,
                linewidths=1.2,
                zorder=3,
            )
        axes.set_xlabel(label, color=palette.muted, loc="left")
        axes.set_ylabel("box mIoU", color=palette.muted, loc="top")
        _name_points(axes, shown, costs, scores, palette)

    return paint


def _name_points(axes: Axes, rows: Sequence[Row], xs: Sequence[float], ys: Sequence[float], palette: Palette) -> None:
    """Write each point's name beside it, where it covers neither another name nor a point, if there is room."""
    figure = axes.get_figure(root=True)
    if figure is None:
        raise ValueError("axes must be on a figure")
    figure.canvas.draw()
    points = [axes.transData.transform((x, y)) for x, y in zip(xs, ys, strict=True)]
    frame, taken = axes.get_window_extent(), list[Bbox]()
    for row, x, y, (px, py) in zip(rows, xs, ys, points, strict=True):
        name = f"{_short(row['model'])} {row['precision']}"
        style: dict[str, Any] = {"color": palette.ink, "fontsize": 8.5, "textcoords": "offset points", "va": "center"}
        for dx, dy in _LABEL_PLACES:
            side = "left" if dx > 0 else "right" if dx < 0 else "center"
            text = axes.annotate(name, (x, y), (dx, dy), ha=side, **style)
            box = text.get_window_extent()
            others = [p for p in points if (p[0], p[1]) != (px, py)]
            inside = box.x0 >= frame.x0 and box.x1 <= frame.x1 and box.y0 >= frame.y0 and box.y1 <= frame.y1
            if inside and not box.count_overlaps(taken) and not any(box.padded(4).contains(*p) for p in others):
                taken.append(box)
                break
            text.remove()


def _by_band(prompt: str) -> Callable[[Axes, Sequence[Row], Palette], None]:
    def paint(axes: Axes, rows: Sequence[Row], palette: Palette) -> None:
        colours = _colours(rows, palette)
        width = 0.78 / len(rows)
        for i, row in enumerate(rows):
            values = [row[f"{prompt}_miou_{band}"] or 0.0 for band in BANDS]
            places = [b + (i - (len(rows) - 1) / 2) * width for b in range(len(BANDS))]
            thickness = width * (0.86 if len(rows) < 8 else 0.95)
            axes.bar(places, values, thickness, color=palette.ground)  # else the grid shines through
            axes.bar(
                places,
                values,
                thickness,
                color=colours[row["model"]],
                alpha=_ALPHAS.get(row["precision"], 1.0),
                label=f"{_short(row['model'])} {row['precision']}",
            )
            if len(rows) <= 4:
                for place, value in zip(places, values, strict=True):
                    if value:
                        label = f"{value:.2f}"[1:] if value < 0.995 else "1"
                        axes.annotate(
                            label, (place, value), (0, 3), textcoords="offset points", ha="center",
                            color=palette.muted, fontsize=8,
                        )  # fmt: skip
        axes.set_xticks(range(len(BANDS)), BANDS)
        axes.set_ylim(0, 1)
        axes.set_ylabel("mIoU", color=palette.muted, loc="top")
        axes.legend(
            loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=3, frameon=False,
            labelcolor=palette.muted, fontsize=8.5, handlelength=0.9, handleheight=0.9, columnspacing=1.4,
        )  # fmt: skip

    return paint


def _short(model: str) -> str:
    """A name that fits beside a point: ``efficientvit_sam_l0`` is ``L0`` to everyone who knows the family."""
    return model.replace("efficientvit_sam_", "evit-").replace("sam_lightening", "lightening")


def _inline(svg: str, name: str) -> str:
    """An SVG as part of a page: no prolog, ids of its own, colours and font by the page's variables."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r' xmlns:xlink="[^"]*"| version="[^"]*"| xmlns="[^"]*"', "", svg)
    svg = re.sub(r'(<svg )[^>]*?(viewBox="[^"]*")[^>]*>', r'\1\2 role="img">', svg, count=1)
    svg = svg.replace("xlink:href", "href")
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'href="#', f'href="#{name}-', svg)
    svg = svg.replace("url(#", f"url(#{name}-")
    svg = re.sub(r"'DejaVu Sans'(, [^;\"]*)?", "var(--sans)", svg)
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    return svg
