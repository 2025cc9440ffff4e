"""Our evaluation gives the IoUs that EfficientViT-SAM's published script gives, instance by instance.

The fixture holds the script's IoU of 300 instances of coco_free with the bundled weights of commit 98dcc49
(parity/README.md): crowd regions included, none left out for its size.
"""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.core.distributed import Ranks
from pipeline.evaluate.accuracy import evaluate_accuracy
from pipeline.evaluate.images import Done, Run
from pipeline.evaluate.validation import ValidationSet
from pipeline.models import build
from pipeline.models.sam import load_weights
from pipeline.ops.metrics import band_means
from pipeline.runtime import Predictor
from pipeline.runtime.pytorch import TorchSegmenter
from pipeline.teacher import BUNDLED
from tests.reference.published import PARITY

DATA = Path(os.environ.get("PIPELINE_REAL_DATA", Path(__file__).parents[3] / "shared" / "data")) / "coco_free"
PROMPTS = {"box": "box", "click1": "click", "click3": "click3", "click5": "click5"}
IMAGES = 30


@dataclass(frozen=True)
class CocoFree(ValidationSet):
    """The photographs where they are, with the json that the published script read."""

    @property
    def annotations(self):
        return self.directory / "instances_val2017.json"


@pytest.fixture(scope="module")
def instances():
    validation = CocoFree(DATA)
    annotated = [photograph for photograph in validation.photographs("published") if photograph.instances]
    sam = load_weights(build("bundled"), BUNDLED["bundled"] / "model.safetensors").eval()
    with ThreadPoolExecutor(2) as pool, torch.inference_mode():
        run = Run(Predictor(TorchSegmenter(sam)), pool, 32, Ranks(), Done(None))
        scored = evaluate_accuracy(run, validation, annotated[:IMAGES], pictures=0, with_mask_input=False).instances
    order = [annotation["id"] for annotation in json.loads(validation.annotations.read_text())["annotations"]]
    return sorted(scored, key=lambda s: (s["image_id"], order.index(s["annotation_id"])))  # the published order


@pytest.mark.skipif(not DATA.is_dir(), reason=f"no photographs at {DATA}: set PIPELINE_REAL_DATA to coco_free's folder")
@pytest.mark.parametrize("prompt", PROMPTS)
def test_every_instance_has_the_published_iou(instances, prompt):
    expected = json.loads((PARITY / "efficientvit_eval_30.json").read_text())[prompt]
    ious = np.array([100 * instance[f"{PROMPTS[prompt]}_iou"] for instance in instances])
    assert [round(instance["area"], 4) for instance in instances] == [entry["area"] for entry in expected]
    gaps = np.abs(ious - [entry["iou"] for entry in expected])
    assert len(gaps) == 300
    assert gaps.max() <= 0.03
    own = band_means("miou", ious.tolist(), [entry["area"] for entry in expected])
    theirs = band_means("miou", [entry["iou"] for entry in expected], [entry["area"] for entry in expected])
    assert own.keys() == theirs.keys() == {"miou", "miou_small", "miou_medium", "miou_large"}
    assert all(abs(own[name] - theirs[name]) <= 0.05 for name in own)
