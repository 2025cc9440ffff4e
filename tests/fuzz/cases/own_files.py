"""Files of our own evaluations, models and data sets, damaged after they were written."""

import json
from pathlib import Path

from numpy.random import Generator

from pipeline.compare import evaluations
from pipeline.core.artifact import Card, read_metrics, read_refusals
from pipeline.data.shards import Shards
from tests.fuzz.mutation import Case, as_json, mutate, pick, written

_SAMPLE = {
    "key": "k", "height": 1, "width": 1, "instances": 1, "image_offset": 0, "image_bytes": 1, "json_offset": 1,
    "json_bytes": 1,
}  # fmt: skip
_FILES = {
    "card.json": {
        "kind": "evaluation", "model": "m", "options": {}, "precision": "fp32", "load": {"a": 1}, "calibration": None,
        "digest": "0", "parents": {"prepare": "1", "distill": "2"},
    },
    "metrics.json": {"a": 1.0, "b": 2},
    "refusals.json": [
        {"model": "m", "precision": "p", "stage": "s", "rule": "r", "value": 1.0, "limit": None, "reason": "x"}
    ],
    "manifest.json": {"splits": {"train": [{"file": "t.tar", "bytes": 3, "sha256": "0", "samples": [_SAMPLE]}]}},
    "set.json": {"name": "v", "source_digest": None, "images": 3},
    "subject.json": {"model": "m", "precision": "p", "runtime": "r", "role": "student"},
    "predictions.json": [{"annotation_id": 1, "box": {}}],
    "instances.json": [{"annotation_id": 1}],
    "latency.json": {"guarded": True, "processor": "x"},
    "calibration.json": {},
    "everything.json": {"images": []},
    "datasets.json": {},
}  # fmt: skip
_READERS = {
    "card.json": Card.read,
    "metrics.json": read_metrics,
    "refusals.json": read_refusals,
    "manifest.json": lambda folder: list(Shards(folder, "train")),
}


def own_files(rng: Generator) -> Case:
    """One broken file among those of a folder."""
    broken = pick(rng, list(_FILES))
    raw = as_json(rng, mutate(rng, _FILES[broken]))

    def run(folder: Path) -> None:
        for name, value in _FILES.items():
            written(folder, name, json.dumps(value).encode())
        written(folder, "t.tar", b"abc")
        written(folder, broken, raw)
        _READERS.get(broken, evaluations.read)(folder)

    return Case(run)
