"""Boxes and points of `predict`."""

import json

from numpy.random import Generator

from pipeline.predict.prompts import read_boxes, read_points
from tests.fuzz.cases.coco import ANNOTATIONS
from tests.fuzz.mutation import Case, as_json, mutate, pick, replaced, written

_BOXES = [
    {"file_name": "a.jpg", "bbox": [1, 2, 3, 4], "score": 0.5, "category_id": 1},
    {"file_name": "a.jpg", "image_id": 1, "bbox": [1, 2, 30, 4]},
]
_POINTS = [{"file_name": "a.jpg", "points": [[1, 2], [3, 4]], "labels": [1, 0]}]
_INVALID_BOXES = (
    ((0, "bbox"), [1, 2, -3, 4]),
    ((0, "bbox"), [1, 2, float("nan"), 4]),
    ((0, "score"), float("inf")),
    ((0, "file_name"), "../a.jpg"),
    ((0, "file_name"), "a\0.jpg"),
)
_INVALID_POINTS = (
    ((0, "points"), [[1, 2]]),
    ((0, "points"), [[1, 2], [3, 1e30]]),
    ((0, "labels"), [1, 7]),
    ((0, "file_name"), "/a.jpg"),
)


def boxes(rng: Generator) -> Case:
    """Detections or COCO annotations as boxes."""
    if rng.random() < 0.2:
        raw = json.dumps(replaced(_BOXES, *pick(rng, _INVALID_BOXES))).encode()
        return Case(lambda folder: read_boxes(written(folder, "b.json", raw), None, None), invalid=True)
    raw = as_json(rng, mutate(rng, pick(rng, (_BOXES, ANNOTATIONS))))
    named, threshold = rng.random() < 0.5, pick(rng, (None, 0.3))
    truth = json.dumps(ANNOTATIONS).encode()

    def run(folder):
        gt = written(folder, "g.json", truth) if named else None
        read_boxes(written(folder, "b.json", raw), gt, threshold)

    return Case(run)


def points(rng: Generator) -> Case:
    """Points with labels."""
    invalid = rng.random() < 0.2
    raw = json.dumps(replaced(_POINTS, *pick(rng, _INVALID_POINTS))).encode()
    if not invalid:
        raw = as_json(rng, mutate(rng, _POINTS))
    return Case(lambda folder: read_points(written(folder, "b.json", raw), None), invalid)
