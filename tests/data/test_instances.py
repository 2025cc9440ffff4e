"""Instances are decoded when they are used, and not before."""

import numpy as np
import pytest

from pipeline.core.errors import InputError
from pipeline.data.instances import instances_of
from pipeline.data.prompts import drawn_prompts, first_prompts
from pipeline.ops import coverage, masks

SIZE = (60, 90)


@pytest.fixture
def decoded(monkeypatch):
    """Masks whose runs were decoded."""
    calls = []
    runs_of = coverage.runs_of
    monkeypatch.setattr(coverage, "runs_of", lambda rle: calls.append(rle["counts"]) or runs_of(rle))
    return calls


def records(count, empty=()):
    rng = np.random.default_rng(0)
    result = []
    for index in range(count):
        mask = np.zeros(SIZE, bool)
        top, left = rng.integers(0, 50), rng.integers(0, 80)
        mask[top : top + rng.integers(1, 10), left : left + rng.integers(1, 10)] = index not in empty
        result.append({"segmentation": masks.encode(mask)})
    return result


def test_only_instances_that_get_a_prompt_are_decoded_each_once(decoded):
    instances = instances_of(records(100), SIZE, 256, 64)
    assert len(instances.coverages) == len(instances.boxes) == 100
    assert not decoded
    first_prompts([np.random.default_rng(1)], [instances.coverages], [instances.boxes], 16, 256)
    assert len(decoded) == len(set(decoded)) == 16
    few = instances_of(records(3), SIZE, 256, 64)
    first_prompts([np.random.default_rng(1)], [few.coverages], [few.boxes], 16, 256)
    assert len(decoded) == 19


def test_prompts_of_lazy_instances_are_those_of_all_of_them():
    instances = instances_of(records(20, empty=(3, 7)), SIZE, 256, 64)
    assert len(instances.coverages) == 18
    floats = instances.coverages.all().astype(np.float32) / 255
    for seed in range(20):
        lazy, eager = (
            drawn_prompts([np.random.default_rng(seed)], [own], [boxes], 8, 256, clicks=(1, 10))
            for own, boxes in ((instances.coverages, instances.boxes), (floats, instances.boxes.all()))
        )
        for (rows, ours), (same, theirs) in zip(lazy, eager, strict=True):
            assert rows == same
            ours = ours.to(theirs.coords.device)
            for name in ("coords", "labels", "targets", "present"):
                assert np.array_equal(getattr(ours, name), getattr(theirs, name)), name


def test_a_mask_of_another_size_is_refused():
    instances = instances_of([{"segmentation": masks.encode(np.ones((6, 5), bool))}], SIZE, 256, 64)
    with pytest.raises(InputError, match=r"a mask of \[6, 5\] pixels is not of its image's size \(60, 90\)"):
        instances.coverages[0]
