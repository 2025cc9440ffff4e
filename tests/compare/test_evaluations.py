import json

import pytest

from pipeline.compare import evaluations
from pipeline.core.artifact import Card, Contents
from pipeline.core.errors import InputError

FILES = {
    "subject.json": {"model": "m", "precision": "fp32", "runtime": "torch", "role": "student"},
    "metrics.json": {"box_miou": 0.5},
    "predictions.json": [{"annotation_id": 1}],
    "instances.json": [{"annotation_id": 1}],
    "latency.json": {"guarded": True},
    "everything.json": {"images": []},
    "calibration.json": {},
    "datasets.json": {},
}


@pytest.fixture
def directory(tmp_path):
    for name, content in FILES.items():
        (tmp_path / name).write_text(json.dumps(content))
    Card.seal(tmp_path, Contents(kind="evaluation", model="m"), {"prepare": "0", "distill": "1"})
    return tmp_path


@pytest.mark.parametrize("content", ["", "3", '"x"', "[[]]", '{"a": [1]}', "[" * 1000, '{"model": [3]}'])
@pytest.mark.parametrize("name", ["subject.json", "metrics.json", "predictions.json", "instances.json"])
def test_a_damaged_file_is_named_in_one_line(directory, name, content):
    (directory / name).write_text(content)
    with pytest.raises(InputError, match=rf"{name}.*Repeat the evaluation") as refused:
        evaluations.read(directory)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("name", ["latency.json", "everything.json", "calibration.json", "datasets.json"])
def test_so_is_a_damaged_optional_one(directory, name):
    (directory / name).write_text("[3]")
    with pytest.raises(InputError, match=rf"{name}.*Repeat the evaluation"):
        evaluations.read(directory)


def test_a_whole_evaluation_is_read(directory):
    assert evaluations.read(directory).metrics == {"box_miou": 0.5}
