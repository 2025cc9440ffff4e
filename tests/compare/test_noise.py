"""Which differences are larger than noise."""

import numpy as np
import pytest

from pipeline.compare.measures import leaderboard_grid, ties
from pipeline.compare.noise import differs, standard_error
from pipeline.compare.quantization import no_speedup, quantization


def scores(values, key="box_iou", area=5000):
    return {number: {key: float(value), "area": area} for number, value in enumerate(values)}


def mean(values):
    return float(np.mean(values))


RNG = np.random.default_rng(0)
BEFORE = RNG.uniform(0.4, 0.9, 100)
WORSE = BEFORE - 0.01 + RNG.normal(0, 0.01, 100)
"""By one standard error of a single object, which over a hundred is ten."""
SAME = BEFORE + RNG.normal(0, 0.05, 100)


def test_the_standard_error_is_that_of_paired_differences():
    a, b = scores(BEFORE), scores(WORSE)
    assert standard_error(a, b, "box_iou") == pytest.approx(np.std(BEFORE - WORSE, ddof=1) / 10)
    assert standard_error(a, b, "box_iou", "small") is None
    assert standard_error(a, b, "click_iou") is None


def test_ious_differ_beyond_two_standard_errors_of_their_objects():
    assert differs("box_miou", mean(BEFORE), mean(WORSE), (scores(BEFORE), scores(WORSE)))
    assert differs("box_retained", 0.9, 0.89, (scores(BEFORE), scores(WORSE)))
    assert not differs("box_miou", mean(BEFORE), mean(SAME), (scores(BEFORE), scores(SAME)))
    few = slice(0, 2)
    assert not differs("box_miou", 0.5, 0.49, (scores([0.2, 0.8]), scores(BEFORE[few])))


@pytest.mark.parametrize(
    ("name", "a", "b", "expected"),
    [
        ("latency_ms", 10.0, 10.4, False),
        ("latency_ms", 10.0, 10.6, True),
        ("memory_mib", 100.0, 103.0, False),
        ("size_mib", 10.0, 10.1, True),
        ("parameters", 1e6, 1e6, False),
        ("coco_vitdet_ap", 0.402, 0.409, False),
        ("coco_vitdet_ap", 0.40, 0.41, True),
        ("box_calibration_error", 0.031, 0.035, False),
    ],
)
def test_times_and_other_scores_have_fixed_margins(name, a, b, expected):
    assert differs(name, a, b) is expected


def row(precision, **figures):
    base = dict.fromkeys(("box_miou", "click_miou", "latency_ms", "size_mib", "memory_mib"), 1.0)
    more = {"role": "student", "model": "s", "precision": precision, "runtime": "openvino", "parameters": 9.0}
    more |= {"encoder_ms": None, "decoder_ms": None, "encoder_macs": None}
    return base | more | {"box_retained": None, "click_retained": None} | figures


def test_the_effect_of_quantization_is_coloured_only_beyond_noise_and_what_does_not_change_is_gone():
    rows = [row("fp32", box_miou=mean(BEFORE)), row("int8", box_miou=mean(SAME), latency_ms=0.5)]
    [grid] = quantization(rows, [scores(BEFORE), scores(SAME)]).grids
    cells = {line.cells[0].text: line.cells[1] for line in grid.lines}
    assert list(cells) == ["Box mIoU", "Latency ms"]
    assert cells["Box mIoU"].text != "0"
    assert (cells["Box mIoU"].tone, cells["Latency ms"].tone) == ("", "better")
    assert quantization([row("fp32"), row("int8")]) is None


def test_students_that_differ_from_the_best_by_noise_are_as_green():
    rows = [row("fp32", box_miou=mean(BEFORE)), row("int8", box_miou=mean(SAME)), row("w4", box_miou=mean(WORSE))]
    equals = ties(rows, [scores(BEFORE), scores(SAME), scores(WORSE)])
    assert equals["box_miou"] == {0, 1}


def test_the_selected_student_is_marked_in_the_leaderboard():
    rows = [row("fp32"), row("int8")]
    grid = leaderboard_grid(rows, [], {}, chosen=rows[1])
    assert [line.cells[0].tag for line in grid.lines] == ["", "selected"]


def test_a_warning_about_all_students_says_all():
    rows = [r | {"model": m} for m in ("a", "b") for r in (row("fp32", encoder_ms=2.0), row("int8", encoder_ms=2.0))]
    assert no_speedup(rows, "a processor").startswith(
        "Reduced precision brings no speedup on a processor for all students: a int8 encodes in 2.00 ms"
    )
    rows[1]["encoder_ms"] = 1.0
    assert "all" not in no_speedup(rows, None)
    assert "a int8" not in no_speedup(rows, None)
