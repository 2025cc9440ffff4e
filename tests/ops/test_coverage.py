"""Coverage from runs is what decoding and resizing the mask gives."""

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.ops import masks
from pipeline.ops.coverage import counts_of, raster, runs_of
from pipeline.ops.geometry import masks_to_frame

SIZES = ((150, 225), (225, 150), (48, 48), (37, 53), (3, 90), (1, 1), (427, 640))


def blob(rng, size, radius, holes):
    mask = np.zeros(size, np.uint8)
    center = (int(rng.integers(size[1])), int(rng.integers(size[0])))
    axes = (max(1, int(radius * rng.uniform(0.3, 1))), max(1, radius))
    cv2.ellipse(mask, center, axes, 180 * rng.random(), 0, 360, 1, -1)
    return mask.astype(bool) & (rng.random(size) >= holes)


def resized(mask, side, grid):
    frame = masks_to_frame(torch.from_numpy(mask.astype(np.float32))[None], side, grid)[0]
    return (frame * 255).round().byte().numpy()


@settings(max_examples=80, deadline=None)
@given(
    st.integers(0, 2**32), st.sampled_from(SIZES), st.integers(1, 300), st.sampled_from([0.0, 0.0, 0.2, 0.9]),
    st.sampled_from([(256, 64), (1024, 256)]), st.booleans(),
)  # fmt: skip
def test_coverage_is_that_of_the_resized_mask_to_1_of_255(seed, size, radius, holes, frame, mirror):
    mask = blob(np.random.default_rng(seed), size, radius, holes)
    found = raster(size, *frame).coverage(runs_of(masks.encode(mask)), mirror=mirror)
    expected = resized(np.ascontiguousarray(mask[:, ::-1]) if mirror else mask, *frame)
    assert np.abs(found.astype(int) - expected).max() <= 1


@settings(max_examples=80, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from(SIZES), st.sampled_from([0.01, 0.5, 0.99]))
def test_runs_are_the_masks_pixels(seed, size, share):
    mask = np.random.default_rng(seed).random(size) < share
    runs = runs_of(masks.encode(mask))
    drawn = np.zeros(size, bool)
    for column, top, bottom in zip(runs.columns, runs.tops, runs.bottoms, strict=True):
        assert top < bottom
        drawn[top:bottom, column] = True
    assert np.array_equal(drawn, mask)
    if mask.any():
        assert runs.box() == masks.box(mask)
    else:
        with pytest.raises(ValueError, match="an empty mask has no box"):
            runs.box()


def test_where_every_pixel_shows_a_single_one_does():
    small, large = raster((60, 90), 256, 64), raster((2000, 3000), 256, 64)
    assert small.shows_every_pixel
    assert not large.shows_every_pixel
    for row, column in ((0, 0), (30, 44), (59, 89)):
        mask = np.zeros((60, 90), bool)
        mask[row, column] = True
        assert small.coverage(runs_of(masks.encode(mask))).any()


def test_lengths_that_do_not_fit_the_mask_are_refused():
    rle = masks.encode(np.ones((5, 4), bool))
    with pytest.raises(ValueError, match="run lengths do not cover a mask of 5 x 5 pixels"):
        runs_of(rle | {"size": [5, 5]})
    assert counts_of("").tolist() == []
