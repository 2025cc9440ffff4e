"""Real photographs in COCO's format, where they are at hand: ``../shared/data`` or ``$PIPELINE_REAL_DATA``."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO

from pipeline.core.log import silent
from pipeline.data.shards import Shards
from pipeline.ops import masks
from pipeline.prepare import PrepareConfig, prepare

DATA = Path(os.environ.get("PIPELINE_REAL_DATA", Path(__file__).parents[3] / "shared" / "data")) / "coco_free"
needs_photographs = pytest.mark.skipif(
    not DATA.is_dir(), reason=f"no photographs at {DATA}: set PIPELINE_REAL_DATA to the folder that holds coco_free"
)
SOURCE = {
    "kind": "coco", "annotations": "instances.json", "images": "images",
    "calibration_images": 16, "validation_images": 40, "seed": 0, "min_area_px": 1,
    "jpeg_quality": 95,
}  # fmt: skip


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    out = tmp_path_factory.mktemp("prepare")
    prepare(PrepareConfig(data=str(DATA), shard_images=64, source=SOURCE), out=out, log=silent)
    return out, json.loads((out / "metrics.json").read_text())


@needs_photographs
def test_every_image_and_instance_is_used_once_or_counted_as_left_out(prepared):
    out, metrics = prepared
    source = json.loads((DATA / "instances.json").read_text())
    crowd = sum(a["iscrowd"] for a in source["annotations"])
    images = sum(metrics[f"{split}_images"] for split in ("train", "calibration", "validation"))
    instances = sum(metrics[f"{split}_instances"] for split in ("train", "calibration", "validation"))
    left_out = {name: value for name, value in metrics.items() if name.startswith("left_out")}
    written = json.loads((out / "validation/instances.json").read_text())["annotations"]
    assert left_out["left_out_crowd_regions"] + sum(a["iscrowd"] for a in written) == crowd
    assert images + left_out["left_out_images_without_objects"] == len(source["images"])
    left = left_out["left_out_tiny_masks"] + left_out["left_out_crowd_regions"]
    assert instances + left == len(source["annotations"])
    keys = [key for split in ("train", "calibration", "validation") for key in Shards(out, split).keys]
    assert len(set(keys)) == len(keys)


@needs_photographs
def test_masks_in_the_shards_are_those_that_pycocotools_draws(prepared):
    out, _ = prepared
    coco = COCO(DATA / "instances.json")
    compared = 0
    for sample in Shards(out, "calibration"):
        for annotation in sample.annotations:
            expected = coco.annToMask(coco.anns[annotation["id"]]).astype(bool)
            assert np.array_equal(masks.decode(annotation["segmentation"]), expected)
            compared += 1
    assert compared > 50


@needs_photographs
def test_pycocotools_reads_the_validation_split(prepared):
    out, metrics = prepared
    coco = COCO(out / "validation" / "instances.json")
    assert len(coco.imgs) == metrics["validation_images"] == 40
    assert len(coco.anns) == metrics["validation_instances"]
