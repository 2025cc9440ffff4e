import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.distill.schedule import layer_weights

SETTINGS = {"layers": st.integers(1, 12), "focus": st.integers(0, 12), "ramp_steps": st.integers(0, 500)}


def test_layers_gain_weight_one_after_the_other():
    weights = [layer_weights(step, layers=4, focus=0, ramp_steps=40) for step in (0, 10, 15, 25, 40)]
    assert weights == [(1, 0, 0, 0), (1, 0, 0, 0), (1, 0.5, 0, 0), (1, 1, 0.5, 0), (1, 1, 1, 1)]


def test_focus_layers_count_from_the_start():
    assert layer_weights(0, layers=4, focus=2, ramp_steps=40) == (1, 0, 1, 1)


def test_without_a_ramp_all_count_at_once():
    assert layer_weights(0, layers=3, focus=0, ramp_steps=0) == (1, 1, 1)


@given(step=st.integers(0, 600), **SETTINGS)
def test_weights_never_fall_and_end_at_one(step, layers, focus, ramp_steps):
    now, later = (layer_weights(s, layers=layers, focus=focus, ramp_steps=ramp_steps) for s in (step, step + 1))
    assert all(0 <= a <= b <= 1 for a, b in zip(now, later, strict=True))
    assert now[0] == 1
    if step >= ramp_steps:
        assert now == pytest.approx((1,) * layers)
