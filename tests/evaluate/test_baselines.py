"""What trivial masks score: against counting pixel by pixel, and on real photographs."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data import coco
from pipeline.data.coco import Instance, Photograph
from pipeline.evaluate.baselines import RADII, disc_ious, ellipse, trivial_masks
from pipeline.ops import masks
from pipeline.ops.metrics import iou
from tests.real.test_photographs import DATA, needs_photographs


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), x=st.integers(0, 29), y=st.integers(0, 19))
def test_discs_score_what_counting_their_pixels_gives(seed, x, y):
    rng = np.random.default_rng(seed)
    mask = np.zeros((20, 30), bool)
    top, left = rng.integers(0, 15), rng.integers(0, 25)
    mask[top : top + rng.integers(1, 9), left : left + rng.integers(1, 9)] = True
    rows, columns = np.mgrid[:20, :30]
    expected = [iou((columns - x) ** 2 + (rows - y) ** 2 <= r**2, mask) for r in RADII * 30]
    np.testing.assert_allclose(disc_ious(mask, (x, y), RADII * 30), expected, atol=1e-12)


def test_an_ellipse_fills_its_box_by_a_quarter_of_pi_and_stays_in_it():
    found = ellipse((10.0, 20.0, 110.0, 80.0), (100, 150))
    assert found.sum() == pytest.approx(np.pi / 4 * 100 * 60, rel=0.01)
    assert masks.box(found) == (10.0, 20.0, 110.0, 80.0)


def test_each_predictor_is_perfect_on_its_own_shape():
    size, center, radius = (100, 200), (60, 50), 20
    rows, columns = np.mgrid[: size[0], : size[1]]
    shapes = {
        "filled_box": np.pad(np.ones((30, 40), bool), ((10, 60), (20, 140))),
        "ellipse": ellipse((30.0, 10.0, 150.0, 90.0), size),
        "disc": (columns - center[0]) ** 2 + (rows - center[1]) ** 2 <= radius**2,
    }
    for name, mask in shapes.items():
        instance = Instance(id=1, category_id=1, rle=masks.encode(mask))
        picture = Photograph(id=1, file_name="1.jpg", height=size[0], width=size[1], instances=[instance])
        with ThreadPoolExecutor(1) as pool:
            found = trivial_masks([picture], pool)
        assert found[name]["click_miou" if name == "disc" else "box_miou"] == 1.0
        if name == "disc":
            assert found["disc"]["radius"] == radius / max(size)
            assert max(found["filled_box"]["box_miou"], found["ellipse"]["box_miou"]) < 1


@needs_photographs
def test_on_photographs_trivial_masks_score_what_they_are_known_to():
    with ThreadPoolExecutor(2) as pool:
        annotated = coco.read(DATA / "instances.json", min_area_px=1).photographs
        found = trivial_masks(annotated, pool)
        tight = [replace(p, instances=[replace(i, area=None, bbox=None) for i in p.instances]) for p in annotated]
        of_masks = trivial_masks(tight, pool)
    assert found["filled_box"]["box_miou"] == pytest.approx(0.5912, abs=5e-4)  # COCO's own boxes
    assert found["ellipse"]["box_miou"] == pytest.approx(0.6238, abs=5e-4)
    assert of_masks["filled_box"]["box_miou"] == pytest.approx(0.5975, abs=5e-4)  # those of the masks
    assert of_masks["ellipse"]["box_miou"] == pytest.approx(0.6232, abs=5e-4)
    assert found["disc"]["click_miou"] == pytest.approx(0.2290, abs=5e-4)
