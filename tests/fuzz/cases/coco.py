"""COCO annotations and results, as `prepare` and `score` read them."""

import json
from pathlib import Path

from numpy.random import Generator

from pipeline.data import coco
from pipeline.evaluate.average_precision import score
from tests.fuzz.mutation import Case, as_json, mutate, pick, replaced, written

_RLE = {"size": [60, 80], "counts": [1000, 500, 3300]}
_SMALL = {"size": [30, 20], "counts": [100, 200, 300]}
ANNOTATIONS = {
    "images": [
        {
            "id": 1,
            "height": 60,
            "width": 80,
            "file_name": "a.jpg",
            "neg_category_ids": [1],
            "not_exhaustive_category_ids": [],
        },
        {"id": 2, "height": 30, "width": 20, "file_name": "b.jpg"},
    ],
    "annotations": [
        {"id": 1, "image_id": 1, "category_id": 1, "segmentation": _RLE, "area": 500.0, "bbox": [10, 5, 40, 25],
         "iscrowd": 0},
        {"id": 2, "image_id": 1, "category_id": 2, "segmentation": [[1, 1, 20, 1, 20, 20]], "area": 100,
         "bbox": [1, 1, 19, 19], "iscrowd": 1},
        {"id": 3, "image_id": 2, "category_id": 1, "segmentation": _SMALL, "area": 200, "bbox": [1, 1, 10, 10],
         "iscrowd": 0},
    ],
    "categories": [{"id": 1, "name": "x", "frequency": "r"}, {"id": 2, "name": "y", "frequency": "c"}],
}  # fmt: skip
_RESULTS = [
    {"image_id": 1, "category_id": 1, "score": 0.9, "bbox": [10, 5, 40, 25], "segmentation": _RLE},
    {"image_id": 2, "category_id": 1, "score": 0.2, "bbox": [1, 1, 10, 10], "segmentation": _SMALL},
]
_INVALID = (
    (("images", 0, "id"), -1),
    (("images", 0, "id"), 2**64),
    (("images", 0, "height"), 2**31),
    (("images", 0, "width"), 0),
    (("annotations", 0, "segmentation", "counts"), [True] * 4800),
    (("annotations", 0, "segmentation", "size"), [10**5, 10**5]),
    (("annotations", 0, "bbox"), [1, 1, -5, 5]),
    (("annotations", 1, "segmentation"), [[1, 1, 1e30, 1, 20, 20]]),
    (("annotations", 1, "iscrowd"), 2**40),
)


def annotations(rng: Generator) -> Case:
    """Annotations for `prepare`."""
    crowd = rng.random() < 0.5
    raw = as_json(rng, mutate(rng, ANNOTATIONS))
    return Case(lambda folder: coco.read(written(folder, "g.json", raw), 1, crowd=crowd))


def scores(rng: Generator) -> Case:
    """Annotations and results for `score`."""
    options = {"iou_type": pick(rng, ("segm", "bbox")), "lvis": rng.random() < 0.3}
    truth, results, invalid = ANNOTATIONS, _RESULTS, rng.random() < 0.2
    if invalid:
        truth, options = replaced(truth, *pick(rng, _INVALID)), {"iou_type": "segm", "lvis": False}
        raw = json.dumps(truth).encode(), json.dumps(results).encode()
    else:
        if rng.random() < 0.6:
            truth = mutate(rng, truth)
        else:
            results = mutate(rng, results)
        raw = as_json(rng, truth), as_json(rng, results)

    def run(folder: Path) -> None:
        text = score(gt=written(folder, "g.json", raw[0]), results=written(folder, "r.json", raw[1]), **options)
        values = json.loads(text)
        assert all(-1 <= value <= 1.000001 for value in values.values()), values

    return Case(run, invalid)
