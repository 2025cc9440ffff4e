"""The student at the top of the report is the one that `register` takes, with the reason in words."""

import pytest

from pipeline.compare.choice import choose, headline
from pipeline.ops.gate import PromoteConfig, best

CONFIG = PromoteConfig(min_box_miou_retained=0.9, min_click_miou_retained=0.8, max_latency_ms=50.0)
SHARED = {"trivial_box_miou": 0.3, "trivial_click_miou": 0.2, "size_mib": 3.0}
TEACHER = SHARED | {"model": "t", "precision": "fp32", "role": "teacher", "artifact": "a/t"}
TEACHER |= {"box_miou": 0.8, "click_miou": 0.5, "box_retained": 1.0, "click_retained": 1.0, "latency_ms": 90.0}


def student(name, box, click, latency):
    row = SHARED | {"model": name, "precision": "int8", "role": "student", "artifact": f"a/{name}"}
    row |= {"box_miou": box, "click_miou": click, "latency_ms": latency}
    return row | {"box_retained": box / 0.8, "click_retained": click / 0.5}


GOOD, FAST, BLIND = student("good", 0.79, 0.49, 20.0), student("fast", 0.76, 0.45, 9.0), student("blind", 0.8, 0.1, 1.0)


@pytest.mark.parametrize("students", [[GOOD, FAST, BLIND], [BLIND, GOOD], [BLIND]], ids=len)
def test_it_is_the_one_that_is_registered(students):
    rows = [TEACHER, *students]
    choice = choose(CONFIG, rows)
    assert choice.row == best(CONFIG, rows)[0]
    assert any(choice.row is row for row in rows)


def test_a_student_with_the_best_boxes_is_not_selected_if_its_clicks_are_bad():
    choice = choose(CONFIG, [TEACHER, BLIND, GOOD, FAST])
    assert choice.row["model"] == "fast"
    assert (
        choice.reason
        == "Of the 2 students that meet every rule for boxes, clicks and latency, it has the lowest latency."
    )
    assert [holds for holds, _ in choice.verdicts] == [True] * 5
    assert choice.verdicts[1][1] == "one click: 90.0 % of the teacher's mIoU, at least 80.0 %"


@pytest.mark.parametrize(
    ("students", "reason"),
    [
        ([GOOD, BLIND], "It is the only one of 2 students that meets every rule for boxes, clicks and latency."),
        ([GOOD], "It meets every rule for boxes, clicks and latency."),
        ([BLIND], "No student meets every rule; it misses 2 of 5."),
        (
            [BLIND, student("blind too", 0.79, 0.1, 2.0)],
            "No student meets every rule. Of the 2 that miss only 2 of 5, it has the lowest latency.",
        ),
        ([BLIND, student("bad", 0.1, 0.1, 99.0)], "No student meets every rule; it misses the fewest, 2 of 5."),
    ],
)
def test_the_reason_says_which_rules_hold_and_what_decided(students, reason):
    assert choose(CONFIG, [TEACHER, *students]).reason == reason


def test_what_was_not_measured_is_said():
    verdicts = choose(CONFIG, [TEACHER, GOOD | {"latency_ms": None, "trivial_box_miou": None}]).verdicts
    assert (False, "boxes: no trivial mask was measured") in verdicts
    assert (False, "latency: not measured") in verdicts


def test_without_students_nothing_is_selected_and_the_teacher_has_metrics():
    assert choose(CONFIG, [TEACHER]) is None
    assert headline(None, TEACHER) == {"teacher_box_miou": 0.8, "teacher_click_miou": 0.5}


def test_the_metrics_for_dvc_are_eight():
    metrics = headline(GOOD, TEACHER)
    assert list(metrics) == [
        *("box_miou", "click_miou", "box_retained", "click_retained", "latency_ms", "size_mib"),
        *("teacher_box_miou", "teacher_click_miou"),
    ]
