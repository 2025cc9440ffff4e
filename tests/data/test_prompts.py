import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.data.prompts import click, corrective_clicks, drawn_prompts, first_prompts, hard_clicks, noisy_box


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


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32), st.integers(1, 4), st.integers(0, 6))
def test_an_image_gets_boxes_or_as_many_clicks_and_never_more_padding_than_sam_gives(seed, fewest, more):
    rng = np.random.default_rng(seed)
    masks = [some_masks(rng, 3) for _ in range(4)]
    generators = [np.random.default_rng((seed, i)) for i in range(4)]
    groups = drawn_prompts(generators, masks, [boxes_of(m, 256) for m in masks], 3, 256, clicks=(fewest, fewest + more))
    assert sorted(place for places, _ in groups for place in places) == [0, 1, 2, 3]
    for places, prompts in groups:
        assert prompts.labels.shape[:2] == (len(places), 3)
        for i, j in np.ndindex(len(places), 3):
            labels, points = prompts.labels[i, j].tolist(), prompts.coords[i, j]
            if labels == [2, 3]:
                continue
            assert labels == [1] * (len(labels) - 1) + [-1]
            assert fewest <= len(labels) - 1 <= fewest + more
            cells = (points[:-1] / 16).long()
            assert (prompts.targets[i, j][cells[:, 1], cells[:, 0]] == 1).all()


def test_boxes_and_clicks_come_equally_often():
    masks = some_masks(np.random.default_rng(0), 3)
    generators = [np.random.default_rng(i) for i in range(300)]
    groups = drawn_prompts(generators, [masks] * 300, [boxes_of(masks, 256)] * 300, 1, 256, clicks=(2, 10))
    boxed = sum(len(places) for places, prompts in groups if prompts.labels.shape[2] == 2)
    assert 120 < boxed < 180


def hard(logits, target, chance, label=1):
    coords, labels = torch.tensor([[[[9.0, 9.0], [0.0, 0.0]]]]), torch.tensor([[[float(label), -1.0]]])
    moved = hard_clicks(coords, labels, logits[None, None], target[None, None], torch.tensor([[chance]]), 8)
    assert torch.equal(moved[0, 0, 1], coords[0, 0, 1])
    return moved[0, 0, 0].tolist()


def test_a_hard_click_falls_on_what_the_mask_misses_and_never_on_what_it_spills():
    target, logits = torch.zeros(4, 4), torch.full((4, 4), -1.0)
    target[1, 1:4] = 1
    logits[1, 1], logits[3] = 1, 1  # found; spilled
    assert hard(logits, target, 0.0) == [5.0, 3.0]  # cells of 2 pixels: column 2 of row 1
    assert hard(logits, target, 0.49) == [5.0, 3.0]
    assert hard(logits, target, 0.5) == [7.0, 3.0]
    assert hard(logits, target, 0.999999) == [7.0, 3.0]


def test_a_click_stays_where_nothing_is_missed_and_a_box_always():
    target = torch.zeros(4, 4)
    target[1, 1:4] = 1
    assert hard(target - 0.5, target, 0.5) == [9.0, 9.0]
    assert hard(-target, target, 0.5, label=2) == [9.0, 9.0]
