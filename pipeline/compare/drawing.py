"""Drawing of plots: SVG for the report, PNG on white for other uses.

The SVG uses the report's CSS variables as colours, so that it follows the light and dark scheme. Both formats are
reproducible byte for byte.
"""

import io
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pipeline.compare.leaderboard import Row

SIZE_IN = (4.5, 3.2)
_LEGEND_COLUMNS, _LEGEND_LINE_IN = 2, 0.16
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
MARKERS = {"fp32": "o", "fp16": "s", "bf16": "^", "int8": "D"}
ALPHAS = {"fp32": 1.0, "fp16": 0.8, "bf16": 0.8, "int8": 0.55}
DASHES: dict[str, Any] = {"fp32": "-", "fp16": (0, (6, 1.5)), "bf16": (0, (4, 1.5)), "int8": (0, (2.5, 1.5))}


@dataclass(frozen=True)
class Palette:
    """Colours of a drawing."""

    ink: str
    muted: str
    grid: str
    ground: str
    series: tuple[str, ...]


_PAPER = Palette(
    "#1c2024",
    "#5b6570",
    "#e3e7eb",
    "#ffffff",
    ("#7a8591", "#2f6fde", "#d9662b", "#2a9d73", "#a24fc0", "#c9a21a", "#d64573", "#1ba3b8"),
)
_PAGE = Palette("#000101", "#000102", "#000103", "#000104", tuple(f"#0002{i:02x}" for i in range(8)))
"""Placeholder colours, replaced by the report's CSS variables."""
_VARIABLES = {_PAGE.ink: "ink", _PAGE.muted: "muted", _PAGE.grid: "line", _PAGE.ground: "card"} | {
    colour: f"series-{i}" for i, colour in enumerate(_PAGE.series)
}

Paint = Callable[[Axes, Palette], None]


@dataclass(frozen=True)
class Plot:
    """A finished plot."""

    name: str
    title: str
    note: str
    svg: str


def draw_one(
    name: str, title: str, note: str, paint: Paint, directory: Path, size_in: tuple[float, float] = SIZE_IN
) -> Plot:
    """Write ``directory/<name>.png`` of ``size_in`` inches and return the plot as SVG for the report."""
    with mpl.rc_context(_STYLE):
        _figure(paint, _PAPER, title, size_in).savefig(
            directory / f"{name}.png", dpi=200, metadata={"Software": None}, facecolor=_PAPER.ground
        )
        stream = io.StringIO()
        page = _figure(paint, _PAGE, None, size_in)
        page.savefig(stream, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    return Plot(name, title, note, _inline(stream.getvalue(), name))


def colours(rows: Sequence[Row], palette: Palette) -> dict[str, str]:
    """Assign a colour to each model: grey to the teacher; colours repeat when there are more models than colours."""
    names = list(dict.fromkeys(row["model"] for row in rows))
    teachers = {row["model"] for row in rows if row["role"] == "teacher"}
    students = [name for name in names if name not in teachers]
    own = palette.series[1:]
    return dict.fromkeys(teachers, palette.series[0]) | {n: own[i % len(own)] for i, n in enumerate(students)}


def label(row: Row) -> str:
    """Name of a model in plots, as in the tables."""
    return f"{row['model']} {row['precision']}".replace("$", r"\$")


def legend(axes: Axes, palette: Palette) -> None:
    """Add a legend below the axes and enlarge the figure by its height."""
    below = -0.24 if axes.get_xlabel() else -0.12
    axes.legend(
        loc="upper center", bbox_to_anchor=(0.5, below), ncols=_LEGEND_COLUMNS, frameon=False,
        labelcolor=palette.muted, fontsize=8.5, handlelength=1.6, handleheight=0.9, columnspacing=1.6,
    )  # fmt: skip
    figure = axes.get_figure(root=True)
    if figure is None:
        raise ValueError("axes must be on a figure")
    lines = math.ceil(len(axes.get_legend_handles_labels()[1]) / _LEGEND_COLUMNS)
    figure.set_size_inches(SIZE_IN[0], SIZE_IN[1] + _LEGEND_LINE_IN * lines)


def _figure(paint: Paint, palette: Palette, title: str | None, size_in: tuple[float, float]) -> Figure:
    figure = Figure(figsize=size_in, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    if title:
        axes.set_title(title, loc="left", color=palette.ink, fontsize=11.5, fontweight="bold", pad=12)
    axes.tick_params(which="both", colors=palette.muted, labelcolor=palette.muted, pad=6)
    axes.spines["bottom"].set_color(palette.grid)
    axes.grid(axis="y", color=palette.grid, linewidth=0.8)
    paint(axes, palette)
    return figure


def _inline(svg: str, name: str) -> str:
    """Prepare an SVG for inlining: no prolog, unique ids, CSS variables for colours and font."""
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
