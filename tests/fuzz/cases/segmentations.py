"""RLE and polygons."""

import numpy as np
from numpy.random import Generator

from pipeline.ops import masks
from tests.fuzz.mutation import Case, mutate, pick

_SIZE = (60, 80)
_VALID = (
    {"size": [60, 80], "counts": [1000, 500, 3300]},
    masks.encode(np.tri(60, 80, dtype=bool)),
    [[1, 1, 20, 1, 20, 20], [30.5, 30, 50, 30, 40, 50]],
)
_INVALID = (
    {"size": [60, 80], "counts": [True] * 4800},
    {"size": [60, 80], "counts": [1000, -500, 4300]},
    {"size": [60, 80], "counts": [1]},
    {"size": [10**5, 10**5], "counts": [10**10]},
    {"size": [60, 80], "counts": "\u00e9"},
    [[1, 1, 20, 1]],
    [[1, 1, float("nan"), 1, 20, 20]],
    [[1, 1, 1e30, 1, 20, 20]],
    [],
)


def segmentations(rng: Generator) -> Case:
    """A mask of COCO's `segmentation`."""
    invalid = rng.random() < 0.2
    value = pick(rng, _INVALID) if invalid else mutate(rng, pick(rng, _VALID))
    return Case(lambda _: masks.from_segmentation(value, _SIZE), invalid)
