"""The detectors' scripts of docs/how-to/predict.md write what `predict --boxes` reads."""

import json
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.models import detection

from pipeline.predict.prompts import read_boxes
from tests.docs.pages import blocks


def script(title):
    (block,) = [block for block in blocks() if block.title == title]
    names = {"__name__": "script"}
    exec(compile(block.body, title, "exec"), names)
    return names


@pytest.fixture
def photos(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    tags = Image.Exif()
    tags[0x0112] = 6
    Image.fromarray(pixels).save(tmp_path / "a.jpg")
    Image.fromarray(pixels).save(tmp_path / "b.jpg", exif=tags)
    return tmp_path


def test_the_script_for_torchvision_writes_boxes_of_upright_images(photos, monkeypatch):
    real = detection.fasterrcnn_resnet50_fpn_v2
    small = partial(real, min_size=64, box_score_thresh=0.0, box_detections_per_img=3)  # its weights are fresh
    monkeypatch.setattr(detection, "fasterrcnn_resnet50_fpn_v2", small)
    (photos / "boxes.json").write_text(json.dumps(script("detect.py")["detect"](photos, None, 0.0)))
    prompts = read_boxes(photos / "boxes.json", None, None)
    sizes = {name: (record.height, record.width) for name, record in prompts.images.items()}
    assert sizes == {"a.jpg": (40, 60), "b.jpg": (60, 40)}
    assert prompts.images["b.jpg"].exif_transposed
    assert 0 < len(prompts.by_image["a.jpg"]) <= 3


def test_the_script_for_ultralytics_writes_boxes(tmp_path):
    boxes = SimpleNamespace(
        xyxy=torch.tensor([[1.0, 2.0, 11.0, 22.0]]), conf=torch.tensor([0.5]), cls=torch.tensor([2.0])
    )
    result = SimpleNamespace(path="/photos/a.jpg", orig_shape=(40, 60), boxes=boxes, names={0: "person", 2: "car"})
    (tmp_path / "boxes.json").write_text(json.dumps(script("detect_yolo.py")["coco_of"]([result])))
    prompts = read_boxes(tmp_path / "boxes.json", None, None)
    (prompt,) = prompts.by_image["a.jpg"]
    assert (prompt.box, prompt.score, prompt.category_id) == ((1, 2, 11, 22), 0.5, 2)
    assert [category["name"] for category in prompts.categories] == ["person", "car"]
