import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.prompts import click, corrective_clicks, first_prompts, noisy_box


def some_masks(rng, count, grid=16):
    masks = np.zeros((count, grid, grid), np.float32)
    for mask in masks:
        top, left = rng.integers(0, grid - 4, 2)
        mask[top : top + rng.integers(2, 5), left : left + rng.integers(2, 5)] = 1
    return masks


def boxes_of(masks, side):
    cell = side / masks.shape[-1]
    found = [(*np.argwhere(m).min(0)[::-1], *(np.argwhere(m).max(0)[::-1] + 1)) for m in masks]
    return np.array(found, np.float32) * cell


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 12), st.integers(1, 9))
def test_each_prompt_asks_for_its_target(seed, available, count):
    rng = np.random.default_rng(seed)
    masks = some_masks(rng, available)
    prompts = first_prompts([rng], [masks], [boxes_of(masks, 256)], count, 256)
    assert prompts.present.all()
    for j in range(count):
        target, coords, labels = prompts.targets[0, j], prompts.coords[0, j], prompts.labels[0, j]
        if labels[0] == 1:
            x, y = (coords[0] / 16).long().tolist()
            assert target[y, x] == 1
            assert labels[1] == -1
        else:
            assert labels.tolist() == [2, 3]
            assert (coords[0] < coords[1]).all()


def test_no_instance_comes_twice_before_all_have_come():
    rng = np.random.default_rng(0)
    masks = np.stack([np.full((4, 4), (i + 1) / 10, np.float32) for i in range(5)])
    boxes = np.tile(np.array([0, 0, 64, 64], np.float32), (5, 1))
    targets = first_prompts([rng], [masks], [boxes], 10, 64).targets[0, :, 0, 0].tolist()
    assert len(set(targets[:5])) == len(set(targets[5:])) == 5


def test_an_image_without_instances_is_absent_and_harms_nothing():
    empty, some = np.zeros((0, 16, 16), np.float32), some_masks(np.random.default_rng(1), 2)
    boxes = [np.zeros((0, 4), np.float32), boxes_of(some, 256)]
    prompts = first_prompts([np.random.default_rng(0)] * 2, [empty, some], boxes, 3, 256)
    assert prompts.present.tolist() == [[False] * 3, [True] * 3]
    assert (prompts.labels[0] == -1).all()


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32))
def test_a_noisy_box_stays_near_and_inside(seed):
    rng = np.random.default_rng(seed)
    low = rng.uniform(0, 150, 2)
    box = np.concatenate([low, low + rng.uniform(5, 100, 2)]).astype(np.float32)
    moved = noisy_box(rng, box, 256)
    assert (moved >= 0).all()
    assert (moved <= 256).all()
    extent = np.array([box[2] - box[0], box[3] - box[1]] * 2)
    assert (np.abs(moved - box) <= np.minimum(0.1 * extent, 5) + 1e-3).all()


def test_a_click_prefers_cells_that_are_all_inside():
    coverage = np.full((8, 8), 0.5, np.float32)
    coverage[3, 5] = 1
    for seed in range(20):
        x, y = click(np.random.default_rng(seed), coverage, 64) // 8
        assert (x, y) == (5, 3)


def test_corrective_clicks_say_what_is_missing_and_what_is_too_much():
    target = torch.zeros(1, 3, 8, 8)
    target[..., 2:6, 2:6] = 1
    logits = torch.where(target > 0, 3.0, -3.0)
    logits[0, 1, 4, 4] = -1  # missed
    logits[0, 2, 0, 7] = 1  # spilled
    coords, labels = corrective_clicks([np.random.default_rng(0)], logits, target, 64)
    assert labels[0, :, 0].tolist() == [-1, 1, 0]
    assert coords[0, 1, 0].tolist() == [36, 36]
    assert coords[0, 2, 0].tolist() == [60, 4]
