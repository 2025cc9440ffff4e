import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from pycocotools import mask as coco_mask

from pipeline.ops import masks
from pipeline.ops.metrics import band_means, bands, calibration, calibration_error, iou, retained


def _mask(*rows):
    return np.array([[c == "#" for c in row] for row in rows])


def test_iou_of_masks_counted_by_hand():
    a, b = _mask("##..", "##.."), _mask(".##.", ".##.")
    assert iou(a, b) == pytest.approx(2 / 6)
    assert iou(a, a) == 1.0
    assert iou(a, ~a) == 0.0


def test_one_pixel_and_border_masks():
    corner = _mask("#...", "....")
    assert iou(corner, corner) == 1.0
    assert iou(corner, _mask("##..", "....")) == 0.5
    assert iou(_mask("####", "####"), corner) == pytest.approx(1 / 8)


def test_an_empty_prediction_scores_zero_also_against_nothing():
    empty = np.zeros((3, 4), bool)
    assert iou(empty, _mask("#...", "....", "....")) == 0.0
    assert iou(empty, empty) == 0.0


def test_masks_of_different_images_are_refused():
    with pytest.raises((ValueError, TypeError), match=r"2, 2|Type-check"):
        iou(np.zeros((2, 2), bool), np.zeros((2, 3), bool))


_SHAPE = st.shared(npst.array_shapes(min_dims=2, max_dims=2, max_side=9), key="shape")


@given(npst.arrays(bool, _SHAPE), npst.arrays(bool, _SHAPE))
def test_iou_agrees_with_pycocotools_and_is_symmetric(a, b):
    first, second = (coco_mask.encode(np.asfortranarray(m, dtype=np.uint8)) for m in (a, b))
    assert iou(a, b) == pytest.approx(float(coco_mask.iou([first], [second], [0])[0, 0]))
    assert iou(a, b) == iou(b, a)


@pytest.mark.parametrize(
    ("area", "expected"),
    [
        (1, ("small",)),
        (32**2 - 1, ("small",)),
        (32**2, ("small", "medium")),
        (32**2 + 1, ("medium",)),
        (96**2 - 1, ("medium",)),
        (96**2, ("medium", "large")),
        (96**2 + 1, ("large",)),
    ],
)
def test_borders_belong_to_both_bands(area, expected):
    assert bands(area) == expected


def test_means_by_hand():
    means = band_means("box_miou", [1.0, 0.5, 0.0], [10, 1024, 5000])
    assert means == {"box_miou": 0.5, "box_miou_small": 0.75, "box_miou_medium": 0.25}


def test_bands_without_instances_have_no_key_and_nothing_has_no_mean():
    assert band_means("m", [0.25], [9999]) == {"m": 0.25, "m_large": 0.25}
    assert band_means("m", [], []) == {}


def test_a_missing_area_is_refused():
    with pytest.raises(ValueError, match="shorter"):
        band_means("m", [0.1, 0.2], [3])


@pytest.mark.parametrize(
    ("value", "whole", "share"), [(0.4, 0.8, 0.5), (None, 0.8, None), (0.4, None, None), (0.1, 0.0, None)]
)
def test_retained_share(value, whole, share):
    assert retained(value, whole) == share


@given(npst.arrays(bool, st.tuples(st.integers(1, 30), st.integers(1, 30))), st.integers(1, 6))
def test_a_boundary_is_what_repeated_erosion_takes_away(mask, width):
    padded = cv2.copyMakeBorder(mask.astype(np.uint8), 1, 1, 1, 1, cv2.BORDER_CONSTANT, value=0)
    kept = cv2.erode(padded, np.ones((3, 3), np.uint8), iterations=width)[1:-1, 1:-1]
    assert np.array_equal(masks.boundary(mask, width), mask & ~kept.astype(bool))


def test_calibration_counted_by_hand():
    bins = calibration([0.05, 0.95, 0.91, 1.3, -1.0], [0.25, 0.9, 0.7, 1.0, 0.0])
    assert [found["count"] for found in bins] == [2, 0, 0, 0, 0, 0, 0, 0, 0, 3]
    assert bins[5] == {"predicted": None, "iou": None, "count": 0}
    assert bins[0] == {"predicted": pytest.approx(0.025), "iou": pytest.approx(0.125), "count": 2}
    assert calibration_error(bins) == pytest.approx((0.1 * 2 + abs(2.86 - 2.6)) / 5)
    assert calibration_error(calibration([0.5, 0.5], [0.0, 1.0])) == 0


def test_without_instances_there_is_no_calibration_error():
    with pytest.raises(ValueError, match="no calibration error"):
        calibration_error(calibration([], []))
