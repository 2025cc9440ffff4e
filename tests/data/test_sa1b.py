import copy
import json
import os

import pytest

from pipeline.core.errors import InputError
from pipeline.data.sa1b import annotations_of, members

RECORD = {
    "image": {"image_id": 1, "height": 60, "width": 80, "file_name": "sa_1.jpg"},
    "annotations": [
        {
            "id": 5,
            "segmentation": {"size": [60, 80], "counts": "PlT1"},
            "bbox": [0, 0, 80, 60],
            "area": 4800,
            "predicted_iou": 0.9,
            "stability_score": 0.95,
            "crop_box": [0, 0, 80, 60],
            "point_coords": [[40.5, 30.5]],
        }
    ],
}
HOSTILE = {
    "deep": (lambda record: record.update(image=json.loads("[" * 500 + "]" * 500)), "64 levels deep"),
    "infinity": (lambda record: record["annotations"][0].update(predicted_iou=float("inf")), "0.predicted_iou: "),
    "nan in points": (
        lambda record: record["annotations"][0].update(point_coords=[[float("nan"), 1.0]]),
        "0.point_coords.0.0: ",
    ),
    "text for a score": (lambda record: record["annotations"][0].update(stability_score="0.9"), "0.stability_score: "),
    "text for a height": (lambda record: record["image"].update(height="60"), "image.height: "),
    "huge image": (lambda record: record["image"].update(height=1 << 31), "image.height: "),
    "id of 2^64": (lambda record: record["annotations"][0].update(id=1 << 64), "0.id: "),
    "crop box of 400 digits": (
        lambda record: record["annotations"][0].update(crop_box=[0, 0, 10**400, 1]),
        "0.crop_box.2: ",
    ),
    "three numbers for a point": (
        lambda record: record["annotations"][0].update(point_coords=[[1, 2, 3]]),
        "0.point_coords.0: ",
    ),
    "annotations as text": (lambda record: record.update(annotations="none"), "annotations: "),
    "no image": (lambda record: record.pop("image"), "image: "),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_record_is_refused_in_one_line(case):
    spoil, says = HOSTILE[case]
    record = copy.deepcopy(RECORD)
    spoil(record)
    with pytest.raises(InputError, match=f"sa_1.json .*{says}") as refused:
        annotations_of(json.dumps(record).encode(), "sa_1.json")
    assert "\n" not in str(refused.value)
    assert str(refused.value).endswith("Download the tar again.")


def test_a_record_in_the_schema_is_read():
    content = annotations_of(json.dumps(RECORD).encode(), "sa_1.json")
    kept = content.annotations[0].model_dump(exclude={"id", "segmentation"}, exclude_unset=True)
    names = ("predicted_iou", "stability_score", "crop_box", "point_coords")
    assert kept == {name: RECORD["annotations"][0][name] for name in names}


def test_a_fifo_among_the_tars_is_refused(tmp_path):
    os.mkfifo(tmp_path / "a.tar")
    with pytest.raises(InputError, match=r"a\.tar cannot be read .*FIFO"):
        members(tmp_path)
