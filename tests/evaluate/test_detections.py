"""Detectors' boxes, and the sets of SGinW: what is scored, found, left out and refused."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.core.distributed import Ranks
from pipeline.core.errors import InputError
from pipeline.evaluate.detections import (
    SGINW,
    SGINW_TRUTH,
    DetectionsConfig,
    SginwConfig,
    evaluate_detections,
    evaluate_sginw,
    trivial_detections,
)
from pipeline.evaluate.images import Done, Run
from pipeline.ops import masks
from pipeline.runtime import Predictor

LVIS = Path(os.environ.get("PIPELINE_REAL_DATA", Path(__file__).parents[3] / "shared" / "data")) / "lvis_v05"
needs_lvis = pytest.mark.skipif(not LVIS.is_dir(), reason=f"no lvis_v05 at {LVIS}")


class BoxFiller:
    """Masks fill the box asked for; images of 64 pixels, exact to the pixel."""

    image_size = input_size = 64
    embedding_size = 16

    def __init__(self):
        self.encoded = 0

    def encode(self, images):
        self.encoded += len(images)
        return torch.zeros(len(images), 256, 16, 16)

    def decode(self, image_embedding, point_coords, point_labels, mask_input=None):
        logits = torch.full((len(point_coords), 4, 64, 64), -1.0)
        for i, corners in enumerate(point_coords.round().int().tolist()):
            (x0, y0), (x1, y1) = corners[:2]
            logits[i, 1, y0:y1, x0:x1] = 1.0
        return logits, torch.tensor([0.0, 0.9, 0.1, 0.1]).repeat(len(point_coords), 1)


@pytest.fixture
def run():
    with ThreadPoolExecutor(2) as pool:
        yield Run(Predictor(BoxFiller()), pool, 4, Ranks(), Done(None))


def _world(folder, images=2, names=None):
    """Images of 64 pixels with two rectangles each, and a detector that finds them all."""
    gt = {"images": [], "annotations": [], "categories": [{"id": 1, "name": "a"}, {"id": 7, "name": "never"}]}
    results = []
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for number in range(1, images + 1):
        name = f"{number}.jpg"
        Image.new("RGB", (64, 64)).save(folder / "images" / name)
        gt["images"].append({"id": number, "height": 64, "width": 64, "file_name": name})
        for x, y, w, h in ((4, 4, 20, 10), (30, 40, 34, 24)):
            mask = np.zeros((64, 64), bool)
            mask[y : y + h, x : x + w] = True
            ids = {"image_id": number, "category_id": 1, "bbox": [x, y, w, h]}
            found = {"id": len(gt["annotations"]) + 1, "segmentation": masks.encode(mask), "area": w * h, "iscrowd": 0}
            gt["annotations"].append(ids | found)
            results.append(ids | {"score": 0.5 + 0.01 * len(results)})
    return gt, results


def _write(folder, gt, results, **more):
    (folder / "gt.json").write_text(json.dumps(gt))
    (folder / "boxes.json").write_text(results if isinstance(results, str) else json.dumps(results))
    settings = {"images": [str(folder / "images")], "lvis": False} | more
    return DetectionsConfig(truth=str(folder / "gt.json"), results=str(folder / "boxes.json"), **settings)


def test_boxes_that_are_right_give_masks_that_are(run, tmp_path):
    figures = evaluate_detections(run, "vitdet", _write(tmp_path, *_world(tmp_path)))
    assert figures["vitdet_ap"] == pytest.approx(1)
    assert figures["vitdet_ar1"] == pytest.approx(0.5)  # two of each image
    assert figures["vitdet_ar100"] == pytest.approx(1)
    assert set(figures) == {f"vitdet_{n}" for n in ("ap", "ap50", "ap75", "ap_small", "ar1", "ar10", "ar100")}
    assert run.predictor.segmenter.encoded == 2


def test_trivial_masks_are_scored_for_the_same_boxes(run, tmp_path):
    figures = trivial_detections(_write(tmp_path, *_world(tmp_path)), "vitdet", run.pool)
    assert figures["filled_box"] == evaluate_detections(run, "vitdet", _write(tmp_path, *_world(tmp_path)))
    # The ellipse of a rectangle has pi / 4 of its area: right at six of ten thresholds, 0.5 to 0.75, on a raster about.
    assert figures["ellipse"]["vitdet_ap"] == pytest.approx(0.6, abs=0.05)


def test_an_empty_results_file_scores_zero_and_encodes_nothing(run, tmp_path):
    figures = evaluate_detections(run, "none", _write(tmp_path, _world(tmp_path)[0], []))
    assert figures["none_ap"] == 0
    assert run.predictor.segmenter.encoded == 0


def test_a_truth_without_an_instance_has_no_figure(run, tmp_path):
    gt, results = _world(tmp_path)
    assert evaluate_detections(run, "x", _write(tmp_path, gt | {"annotations": []}, results)) == {}


def test_a_detection_on_a_crowd_region_counts_for_nothing(run, tmp_path):
    gt, results = _world(tmp_path)
    gt["annotations"][0]["iscrowd"] = 1
    results[0]["score"] = 1.0
    assert evaluate_detections(run, "x", _write(tmp_path, gt, results))["x_ap"] == pytest.approx(1)


@needs_lvis
def test_lvis_images_are_found_by_their_url_and_have_figures_by_frequency(run, tmp_path):
    gt = json.loads((LVIS / "lvis_val_100.json").read_text())
    image = next(i for i in gt["images"] if i["height"] == 480 and i["width"] == 640)
    gt["images"] = [image | {"height": 64, "width": 64, "coco_url": "http://images/train2017/000000000009.jpg"}]
    gt["images"][0].pop("file_name", None)
    own = {**_world(tmp_path)[0]["annotations"][0], "image_id": image["id"], "category_id": gt["categories"][0]["id"]}
    gt["annotations"] = [own]
    (tmp_path / "train2017").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "train2017" / "000000000009.jpg")
    found = {key: own[key] for key in ("image_id", "category_id", "bbox")}
    results = [found | {"score": 0.9}] + [found | {"bbox": [0, 0, 3, 3], "score": 0.1}] * 400
    config = _write(tmp_path, gt, results, lvis=True, images=[str(tmp_path / "absent"), str(tmp_path)])
    figures = evaluate_detections(run, "lvis", config)
    frequency = {"r": "rare", "c": "common", "f": "frequent"}[gt["categories"][0]["frequency"]]
    assert figures["lvis_ap"] == figures[f"lvis_ap_{frequency}"] == pytest.approx(1)
    assert figures["lvis_ar300"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda gt, r: r[1].update(score=float("nan")), r"boxes\.json: 1\.score: .*finite number, not nan"),
        (lambda gt, r: r[1].pop("bbox"), "detection 1 .*its bbox must be"),
        (lambda gt, r: r[1].update(bbox=[1, 2, -3, 4]), r"1\.bbox: bbox must be"),
        (lambda gt, r: r[1].update(image_id=9), "detection 1 .*has no image 9"),
        (lambda gt, r: r[1].update(category_id=9), "detection 1 .*has no category 9"),
        (lambda gt, r: gt["annotations"][1].update(id=1), "annotation id 1 occurs 2 times"),
        (lambda gt, r: gt["images"][0].update(file_name="x.jpg"), r"image 1 \(x\.jpg\) is in none of .*images"),
        (lambda gt, r: gt["images"][0].update(file_name="../1.jpg"), "must lie inside its folder"),
        (lambda gt, r: gt["images"][0].pop("file_name"), "image 1 .*without file_name and coco_url"),
        (
            lambda gt, r: gt.update(annotations=[]) or gt["images"][0].update(width=65),
            r"1\.jpg is \(64, 64\) pixels .*gt\.json",
        ),
    ],
)
def test_what_cannot_be_used_is_refused_with_file_and_record(run, tmp_path, change, says):
    gt, results = _world(tmp_path)
    change(gt, results)
    with pytest.raises(InputError, match=says):
        evaluate_detections(run, "x", _write(tmp_path, gt, results))


def _sginw(folder, names):
    for name in names:
        gt, results = _world(folder / name)
        (folder / name / "images").rename(folder / name / "valid")
        (folder / name / "valid" / SGINW_TRUTH).write_text(json.dumps(gt))
        (folder / f"{name}.json").write_text(json.dumps(results if name != "Cows" else []))
    return SginwConfig(folder=str(folder), detections=str(folder / "{set}.json"))


def test_the_sets_of_sginw_are_averaged_and_missing_ones_are_named(run, tmp_path, capsys):
    config = _sginw(tmp_path, ["Bottles", "Cows", "Trash"])
    (tmp_path / "Trash.json").unlink()
    metrics, sets = evaluate_sginw(run, config)
    assert metrics == {"sginw_ap": pytest.approx(0.5), "sginw_sets": 2}
    assert sets["ap"] == {"Bottles": pytest.approx(1), "Cows": 0}
    assert set(sets["missing"]) == {*SGINW} - {"Bottles", "Cows"}
    assert sets["missing"]["Trash"].endswith("Trash.json does not exist")
    assert "sginw: skipped Trash: " in capsys.readouterr().err


def test_sginw_without_a_single_set_is_refused(run, tmp_path):
    with pytest.raises(InputError, match="none of the 25 datasets exists .*Airplane-Parts"):
        evaluate_sginw(run, SginwConfig(folder=str(tmp_path), detections="{set}.json"))
    assert len(SGINW) == len(set(SGINW)) == 25
