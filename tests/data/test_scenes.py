import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.scenes import MIN_VISIBLE_PX, render


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([64, 96, 160]))
def test_a_scene_is_what_its_seed_says(seed, side):
    one, two = (render(np.random.default_rng(seed), side) for _ in range(2))
    assert np.array_equal(one.image, two.image)
    assert all(np.array_equal(a, b) for a, b in zip(one.masks, two.masks, strict=True))


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 2**32))
def test_no_instance_is_too_small_and_parts_lie_within_or_beside_others(seed):
    scene = render(np.random.default_rng(seed), 128)
    assert scene.image.shape == (128, 128, 3)
    for mask in scene.masks:
        assert mask.sum() >= MIN_VISIBLE_PX * 128 * 128 / 256**2
    for i, a in enumerate(scene.masks):
        for b in scene.masks[i + 1 :]:
            shared = (a & b).sum()
            # Two instances share pixels only where one is a part of the other; borders may differ by a pixel.
            assert shared <= 0.05 * min(a.sum(), b.sum()) or shared >= 0.5 * min(a.sum(), b.sum())


def test_scenes_vary_in_color_count_size_holes_and_nesting():
    scenes = [render(np.random.default_rng((5, i)), 128) for i in range(40)]
    assert len({len(s.masks) for s in scenes}) >= 6
    areas = np.array([m.mean() for s in scenes for m in s.masks])
    assert areas.max() / areas.min() > 30
    assert np.std([s.image.mean() for s in scenes]) > 20
    nested = sum((a & b).sum() >= 0.9 * b.sum() for s in scenes for a in s.masks for b in s.masks if a.sum() > b.sum())
    assert nested >= 10


def test_the_masks_are_where_the_image_changes():
    """Painted borders show in the picture: its gradient is higher along mask borders than elsewhere."""
    ratios = []
    for i in range(20):
        scene = render(np.random.default_rng((6, i)), 128)
        grey = scene.image.astype(float).mean(axis=2)
        gradient = np.hypot(*np.gradient(grey))
        border = np.zeros((128, 128), bool)
        for mask in scene.masks:
            border |= mask ^ np.roll(mask, 1, axis=0)
            border |= mask ^ np.roll(mask, 1, axis=1)
        ratios.append(gradient[border].mean() / gradient[~border].mean())
    assert np.median(ratios) > 2


@pytest.mark.parametrize("side", [64, 256])
def test_any_side_is_rendered(side):
    assert render(np.random.default_rng(0), side).image.shape == (side, side, 3)
