import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import InputError
from pipeline.ops.gate import PromoteConfig, best, check

CONFIG = PromoteConfig(
    registered_model="m",
    min_box_miou_retained=0.9,
    min_click_miou_retained=0.8,
    max_latency_ms=20.0,
    prefer="latency_ms",
)
TEACHER = {"role": "teacher", "box_miou": 0.8, "click_miou": 0.5, "latency_ms": 90.0}


def student(box=0.8, click=0.5, latency=10.0, name="s"):
    numbers = {"box_miou": box, "click_miou": click, "latency_ms": latency}
    numbers |= {"trivial_box_miou": 0.05, "trivial_click_miou": 0.02}
    return {"role": "student", "model": name, "artifact": f"artifacts/{name}"} | numbers


def test_a_model_as_good_as_its_teacher_and_fast_keeps_every_rule():
    assert all(rule.holds for rule in check(CONFIG, student(), TEACHER))


def test_a_broken_rule_tells_value_limit_and_shortfall():
    box, click, *_, latency = check(CONFIG, student(box=0.4, latency=25.0), TEACHER)
    assert str(box) == "box_miou_retained 0.5 misses 0.9 by 0.4"
    assert click.holds
    assert str(latency) == "latency_ms 25 misses 20 by 5"


def test_what_was_not_measured_does_not_pass():
    rules = check(CONFIG, student(click=None, latency=None), TEACHER)
    assert [rule.holds for rule in rules] == [True, False, True, False, False]
    assert "was not measured" in str(rules[1])


@given(st.floats(0, 1), st.floats(0, 1))
def test_more_accuracy_never_breaks_a_rule(first, second):
    low, high = sorted((first, second))
    kept = [check(CONFIG, student(box=box), TEACHER)[0].holds for box in (low, high)]
    assert kept[1] >= kept[0]


def test_the_faster_of_two_that_pass_is_best_and_one_that_fails_is_not():
    rows = [TEACHER, student(latency=9, name="a"), student(latency=8, name="b"), student(box=0.1, latency=1, name="c")]
    assert best(CONFIG, rows)[0]["model"] == "b"


def test_preferring_accuracy_takes_the_more_accurate():
    rows = [TEACHER, student(box=0.78, latency=9, name="a"), student(box=0.75, latency=8, name="b")]
    config = CONFIG.model_copy(update={"prefer": "box_miou"})
    assert best(config, rows)[0]["model"] == "a"


@pytest.mark.parametrize(("rows", "lack"), [([TEACHER], "no student"), ([student()], "no teacher")])
def test_a_leaderboard_that_cannot_be_judged_is_refused(rows, lack):
    with pytest.raises(InputError, match=lack):
        best(CONFIG, rows)


@pytest.mark.parametrize("prompt", ["box", "click"])
def test_a_model_no_better_than_a_trivial_mask_is_refused_whatever_it_keeps_of_its_teacher(prompt):
    row = student() | {f"trivial_{prompt}_miou": student()[f"{prompt}_miou"]}
    broken = [rule for rule in check(CONFIG, row, TEACHER) if not rule.holds]
    assert [rule.name for rule in broken] == [f"{prompt}_miou_above_trivial"]
    assert "misses" in str(broken[0])
    allowed = CONFIG.model_copy(update={"allow_below_trivial": True})
    assert all(rule.holds for rule in check(allowed, row, TEACHER))


def test_a_version_without_a_trivial_score_beside_it_is_refused():
    row = {key: value for key, value in student().items() if not key.startswith("trivial")}
    broken = [str(rule) for rule in check(CONFIG, row, TEACHER) if not rule.holds]
    assert len(broken) == 2
    assert "no reference to compare with: run `dvc repro`" in broken[0]
