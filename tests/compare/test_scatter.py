"""Accuracy against cost: every point is named as in the tables, at the point, and the axes have enough ticks."""

import math
from functools import partial

import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from pipeline.compare.drawing import Palette, label
from pipeline.compare.scatter import against_cost, log_ticks

PALETTE = Palette("#000", "#111", "#222", "#fff", tuple(f"#{i}{i}{i}" for i in range(8)))
NAMES = ("efficientvit_sam_nano", "tinysam_nano", "sam_lightening_nano")


def rows(costs, scores):
    models = [("teacher", "fp32"), *((name, precision) for name in NAMES for precision in ("fp32", "int8"))]
    return [
        {"model": m, "precision": p, "role": "teacher" if m == "teacher" else "student", "latency_ms": cost}
        | {"box_miou": score, "trivial_box_miou": 0.6}
        for (m, p), cost, score in zip(models, costs, scores, strict=True)
    ]


CROWD = rows((50.0, 12.0, 11.9, 12.1, 12.2, 12.0, 11.8), (0.8, 0.52, 0.521, 0.522, 0.523, 0.524, 0.525))
SPREAD = rows((400.0, 12.0, 20.0, 30.0, 40.0, 80.0, 160.0), (0.8, 0.52, 0.6, 0.65, 0.7, 0.74, 0.76))


@pytest.fixture(params=[CROWD, SPREAD], ids=["crowd", "spread"])
def drawn(request):
    figure = Figure(figsize=(5.4, 3.9), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    partial(against_cost, request.param, "box", "latency_ms", "latency, ms")(axes, PALETTE)
    figure.canvas.draw()
    return request.param, axes


def named(axes, shown):
    texts = {text.get_text(): text for text in axes.texts}
    return [texts[label(row)] for row in shown]


def test_every_point_has_its_name_of_the_table(drawn):
    shown, axes = drawn
    assert [text.get_text() for text in named(axes, shown)] == [f"{r['model']} {r['precision']}" for r in shown]


def test_a_name_is_at_its_point_or_a_line_leads_there(drawn):
    shown, axes = drawn
    for row, text in zip(shown, named(axes, shown), strict=True):
        assert text.xy == (row["latency_ms"], row["box_miou"])
        x, y = axes.transData.transform(text.xy)
        box = text.get_bbox_patch().get_window_extent()
        gap = math.hypot(max(box.x0 - x, 0, x - box.x1), max(box.y0 - y, 0, y - box.y1))
        assert gap < 25 or text.arrow_patch is not None


def test_no_name_covers_another_and_all_are_inside(drawn):
    shown, axes = drawn
    frame = axes.get_window_extent()
    boxes = [text.get_bbox_patch().get_window_extent() for text in named(axes, shown)]
    for i, box in enumerate(boxes):
        assert not box.count_overlaps([other.padded(-2) for other in boxes[:i]])
        assert frame.padded(3).containsx(box.x0)
        assert frame.padded(3).containsx(box.x1)


def test_both_axes_have_at_least_four_ticks(drawn):
    _, axes = drawn
    for axis, (low, high) in ((axes.xaxis, axes.get_xlim()), (axes.yaxis, axes.get_ylim())):
        assert len([tick for tick in axis.get_majorticklocs() if low <= tick <= high]) >= 4


def test_what_a_trivial_mask_scores_is_a_line(drawn):
    _, axes = drawn
    assert any(list(line.get_ydata()) == [0.6, 0.6] for line in axes.lines)
    assert "best trivial mask" in [text.get_text() for text in axes.texts]


@pytest.mark.parametrize(("low", "high"), [(1.0, 10.0), (2.0, 19.0), (30.0, 300.0), (0.4, 4000.0), (7.0, 60.0)])
def test_logarithmic_axes_have_round_ticks(low, high):
    ticks = log_ticks(low, high)
    assert len(ticks) >= 4
    assert low <= ticks[0] < ticks[-1] <= high
