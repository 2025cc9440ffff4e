"""Clicks against RITM's clicker on whole images, as `pipeline.evaluate.reference` writes it out."""

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.evaluate.reference import _Clicker
from pipeline.ops import masks
from pipeline.ops.clicks import Click, next_click


def _mask(rng, size, grain):
    noise = cv2.GaussianBlur(rng.standard_normal(size).astype(np.float32), (0, 0), grain)
    return noise > rng.normal() * 0.3 / grain


@settings(deadline=None, max_examples=80)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.tuples(st.integers(1, 90), st.integers(1, 90)),
    grain=st.sampled_from([0.5, 2.0, 6.0, 20.0]),
)
def test_every_click_of_a_sequence_is_the_published_one(seed, size, grain):
    rng = np.random.default_rng(seed)
    truth, found = _mask(rng, size, grain), np.zeros(size, bool)
    published, clicked = _Clicker(truth), []
    for _ in range(5):
        published.click(found)
        click = next_click(truth, found, clicked)
        assert click == Click(*published.points[-1], bool(published.labels[-1]))
        clicked.append((click.x, click.y))
        found = truth ^ (_mask(rng, size, grain) & _mask(rng, size, grain))


@pytest.mark.parametrize("size", [(300, 400), (700, 640)])
def test_large_even_shapes_whose_maxima_are_many_are_clicked_as_published(size):
    truth = np.zeros(size, bool)
    truth[size[0] // 3 : -40, :] = True  # touches the border, and its middle line is all equally deep
    published = _Clicker(truth)
    published.click(np.zeros(size, bool))
    assert next_click(truth, np.zeros(size, bool), ())[:2] == published.points[0]


def test_the_first_click_is_the_centre():
    truth = np.zeros((40, 60), bool)
    truth[3:20, 10:50] = True
    assert next_click(truth, np.zeros_like(truth), ()) == Click(*map(int, masks.center(truth)), True)


def test_a_mask_without_fault_gets_a_negative_click_on_the_first_pixel():
    truth = np.ones((5, 5), bool)
    assert next_click(truth, truth, ()) == Click(0, 0, False)


def test_equal_faults_get_a_negative_click_and_a_clicked_pixel_none():
    truth, found = np.zeros((20, 20), bool), np.zeros((20, 20), bool)
    truth[2, 2], found[9, 9] = True, True
    assert next_click(truth, found, ()) == Click(9, 9, False)
    assert next_click(truth, found, [(9, 9)]) == Click(2, 2, True)
    assert next_click(truth, found, [(9, 9), (2, 2)]) == Click(0, 0, False)
