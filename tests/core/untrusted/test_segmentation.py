import pytest

from pipeline.core.errors import InputError
from pipeline.core.untrusted.segmentation import LONGEST_OUTLINE, check, is_number
from pipeline.ops import masks

SIZE = (60, 80)
SQUARE = [1, 1, 9, 1, 9, 9, 1, 9]


def rle(counts, size=SIZE):
    return {"size": [*size], "counts": counts}


def far(corners, size):
    """A zigzag between opposite ends of what is near an image."""
    return [value for i in range(corners) for value in ((-10.0 if i % 2 else 10.0) * max(size), 1.0)]


HOSTILE = {
    "none": (None, SIZE),
    "number": (3, SIZE),
    "text": ("abc", SIZE),
    "empty": ([], SIZE),
    "box": ([1, 2, 3, 4], SIZE),
    "polygon of two corners": ([[1, 2, 3, 4]], SIZE),
    "odd polygon": ([[1, 2, 3, 4, 5, 6, 7]], SIZE),
    "nan": ([[*SQUARE[:-1], float("nan")]], SIZE),
    "true": ([[*SQUARE[:-1], True]], SIZE),
    "10^30": ([[*SQUARE[:-1], 1e30]], SIZE),
    "integer of 400 digits": ([[*SQUARE[:-1], 10**400]], SIZE),
    "2^31 x 2^31": ([SQUARE], (1 << 31, 1 << 31)),
    "1 x 2^31 and a far polygon": ([[0, 0, 1 << 32, 0, 1 << 32, 1]], (1, 1 << 31)),
    "rle of 10^5 x 10^5": (rle([10**10], (10**5, 10**5)), (10**5, 10**5)),
    "no height": ([SQUARE], (0, 5)),
    "too many polygons": ([SQUARE] * 4_001, SIZE),
    "too long an outline": ([far(1 << 8, (16_384, 16_384))], (16_384, 16_384)),
    "too long an outline in parts": ([far(30, (16_384, 16_384))] * 10, (16_384, 16_384)),
    "true as counts": (rle([True] * 4800), SIZE),
    "fractions as counts": (rle([4800.0]), SIZE),
    "counts below zero": (rle([4801, -1]), SIZE),
    "counts of 2^64": (rle([1 << 64, 4800 - (1 << 64)]), SIZE),
    "counts that are short": (rle([4799]), SIZE),
    "counts as text that are short": (rle("1"), SIZE),
    "counts as text without end": (rle("~"), SIZE),
    "counts of other characters": (rle("\x01é"), SIZE),
    "too many counts": (rle([4800, *([0] * (1 << 22))]), SIZE),
    "too many characters": (rle("0" * ((1 << 22) + 1)), SIZE),
    "counts as an object": (rle({}), SIZE),
    "size as text": ({"size": "60", "counts": [4800]}, SIZE),
    "size as booleans": ({"size": [True, True], "counts": [1]}, (1, 1)),
    "size as an object": ({"size": {"60": 0, "80": 0}, "counts": [4800]}, SIZE),
    "size of another image": (rle([4800], (80, 60)), SIZE),
    "nothing": ({}, SIZE),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_segmentation_is_refused_in_one_line(case):
    segmentation, size = HOSTILE[case]
    with pytest.raises(InputError) as refused:
        masks.from_segmentation(segmentation, size)
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 300


def test_the_largest_outline_is_drawn():
    corners = far(int(LONGEST_OUTLINE / (20 * 16_384 + 1)), (16_384, 16_384))
    assert masks.area(masks.from_segmentation([corners], (16_384, 16_384))) >= 0


def test_the_three_forms_describe_the_same_mask():
    polygons = masks.from_segmentation([SQUARE], SIZE)
    decoded = masks.decode(polygons)
    runs, last = [0], False
    for value in decoded.ravel(order="F").tolist():
        if value != last:
            runs.append(0)
            last = value
        runs[-1] += 1
    assert masks.from_segmentation(rle(runs), SIZE) == polygons == masks.from_segmentation(polygons, SIZE)
    check(polygons, SIZE)


@pytest.mark.parametrize(("value", "answer"), [(1, True), (1.5, True), (True, False), ("1", False), (10**400, False)])
def test_a_number_is_finite_and_fits_a_double(value, answer):
    assert is_number(value) is answer
