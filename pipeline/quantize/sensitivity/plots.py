"""Plots of the sensitivity report: layers, groups, and inputs of the worst layers."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

_WIDTH_INCHES = 9.0
_ALONE, _ALL, _KEPT = "#4477aa", "#bbbbbb", "#cc6677"


def draw(report: Mapping[str, Any], directory: Path) -> None:
    """Write ``sensitivity_layers.png``, ``sensitivity_groups.png`` and ``sensitivity_histograms.png``."""
    for name, figure in (
        ("layers", _layers(report)),
        ("groups", _groups(report)),
        ("histograms", _histograms(report)),
    ):
        FigureCanvasAgg(figure)
        # Without the tool's name and version in the file, equal figures give equal bytes.
        figure.savefig(directory / f"sensitivity_{name}.png", dpi=90, metadata={"Software": None})


def _layers(report: Mapping[str, Any]) -> Figure:
    rows, kept = report["layers"], set(report["suggested"]["keep"])
    figure = Figure(figsize=(_WIDTH_INCHES, 1.0 + 0.16 * len(rows)), layout="constrained")
    axes = figure.subplots()
    ys = range(len(rows))
    axes.barh(ys, [row["accumulated_snr_db"] for row in rows], color=_ALL, label="all layers rounded", height=0.8)
    colours = [_KEPT if row["name"] in kept else _ALONE for row in rows]
    axes.barh(ys, [row["snr_db"] for row in rows], color=colours, label="this one alone", height=0.4)
    axes.set_yticks(list(ys), [row["name"] for row in rows], fontsize=6)
    axes.invert_yaxis()
    axes.set_xlabel("signal to noise of the output, dB (red: suggested to keep)")
    axes.legend(fontsize=7)
    return figure


def _groups(report: Mapping[str, Any]) -> Figure:
    groups, lowered = report["groups"], report["lowered"]
    figure = Figure(figsize=(_WIDTH_INCHES, 1.5 + 0.3 * len(groups)), layout="constrained")
    axes = figure.subplots()
    for shift, (metric, colour) in enumerate((("box_miou", _ALONE), ("click_miou", _KEPT))):
        gains = [100 * (row[metric] - lowered[metric]) for row in groups]
        axes.barh([i + 0.4 * shift for i in range(len(groups))], gains, 0.38, color=colour, label=metric)
    axes.set_yticks([i + 0.2 for i in range(len(groups))], [row["name"] for row in groups], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("points of mIoU gained where the group is left in floating point")
    axes.legend(fontsize=7)
    return figure


def _histograms(report: Mapping[str, Any]) -> Figure:
    worst = report["worst"]
    figure = Figure(figsize=(_WIDTH_INCHES, 1.8 * max(1, len(worst))), layout="constrained")
    for axes, row in zip(figure.subplots(max(1, len(worst)), squeeze=False)[:, 0], worst, strict=False):
        axes.stairs(row["counts"], row["edges"], fill=True, color=_ALONE)
        for edge in (-row["range"], row["range"]):
            axes.axvline(edge, color=_KEPT)
        axes.set_yscale("log")
        axes.set_title(f"{row['name']}: {100 * row['beyond_range']:.3f} % beyond the range", fontsize=8)
    return figure
