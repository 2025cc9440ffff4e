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


def some_box(rng):
    low = rng.uniform(0, 150, 2)
    return np.concatenate([low, low + rng.uniform(5, 100, 2)]).astype(np.float32)


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.floats(0, 3))
def test_a_noisy_box_stays_near_inside_and_in_order(seed, jitter):
    rng = np.random.default_rng(seed)
    box = some_box(rng)
    moved = noisy_box(rng, box, 256, jitter)
    assert (moved >= 0).all()
    assert (moved <= 256).all()
    assert (moved[:2] <= moved[2:]).all()
    assert (np.abs(moved - box) <= 5 + 1e-3).all()


def test_the_noise_of_a_box_has_sams_deviation_and_largest_move():
    rng = np.random.default_rng(0)
    small, large = np.array([300, 300, 340, 380], np.float32), np.array([200, 200, 800, 900], np.float32)
    moves = np.stack([noisy_box(rng, small, 1024) - small for _ in range(4000)])
    assert np.abs(moves.std(0) - [4, 8, 4, 8]).max() < 0.3
    far = np.abs(np.stack([noisy_box(rng, large, 1024) - large for _ in range(500)]))
    assert far.max() == 20
    assert 0.6 < (far == 20).mean() < 0.85  # beyond a third of a deviation


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**32))
def test_without_jitter_boxes_are_exact(seed):
    rng = np.random.default_rng(seed)
    masks = some_masks(rng, 3)
    boxes = boxes_of(masks, 256)
    groups = drawn_prompts([rng], [masks], [boxes], 6, 256, clicks=(1, 10), box_jitter=0.0)
    exact = {tuple(box) for box in boxes.tolist()}
    for _, prompts in groups:
        for coords, labels in zip(prompts.coords[0], prompts.labels[0], strict=True):
            assert labels[0] == 1 or tuple(coords.flatten().tolist()) in exact


@settings(max_examples=50, deadline=None)
@given(st.integers(0, 2**32), st.integers(2, 7))
def test_a_thin_object_is_clicked_in_more_than_one_cell(seed, length):
    rng = np.random.default_rng(seed)
    coverage = np.zeros((8, 8), np.float32)
    coverage[rng.integers(8), :length] = rng.uniform(0.3, 0.6, length)
    coverage[rng.permutation(8)[:4], 7] += 0.01
    cells = {tuple(click(rng, coverage, 64) // 8) for _ in range(60)}
    assert len(cells) > 1
    assert all(coverage[int(y), int(x)] >= coverage.max() / 2 for x, y in cells)


def test_clicks_are_in_proportion_to_coverage():
    coverage = np.array([[0, 0.6, 0.1], [0, 1, 0.8], [0, 0, 0]], np.float32)
    rng = np.random.default_rng(0)
    counts = np.zeros((3, 3))
    for x, y in (click(rng, coverage, 3).astype(int) for _ in range(4000)):
        counts[y, x] += 1
    expected = np.where(coverage >= 0.5, coverage, 0) / 2.4
    assert np.abs(counts / 4000 - expected).max() < 0.03


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
