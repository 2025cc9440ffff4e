"""Our figures against pycocotools' and lvis's own, and what is refused."""

import contextlib
import copy
import io
import json
import os
import subprocess
import sys
from pathlib import Path

import lvis
import numpy as np
import pytest
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipeline.core.errors import InputError
from pipeline.evaluate.average_precision import score
from pipeline.ops import masks

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("PIPELINE_REAL_DATA", ROOT.parent / "shared" / "data"))
needs_coco = pytest.mark.skipif(not (DATA / "coco_ap_check").is_dir(), reason=f"no coco_ap_check in {DATA}")
needs_lvis = pytest.mark.skipif(not (DATA / "lvis_v05").is_dir(), reason=f"no lvis_v05 in {DATA}")
KEYS = ["AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl"]


def _score(gt, results, directory, iou_type="segm", lvis=False):
    for name, content in (("gt", gt), ("results", results)):
        (directory / f"{name}.json").write_text(content if isinstance(content, str) else json.dumps(content))
    return json.loads(score(gt=directory / "gt.json", results=directory / "results.json", iou_type=iou_type, lvis=lvis))


def _pycocotools(gt, results, iou_type):
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(gt)
        truth.createIndex()
        scorer = COCOeval(truth, truth.loadRes(copy.deepcopy(results)), iou_type)
        scorer.evaluate()
        scorer.accumulate()
        scorer.summarize()
    return dict(zip(KEYS, scorer.stats, strict=True))


def _rectangle(height, width, box):
    x0, y0, x1, y1 = box
    mask = np.zeros((height, width), bool)
    mask[y0:y1, x0:x1] = True
    return masks.encode(mask)


def _world(seed, images=6, with_boxes=True):
    """Annotations with crowd regions and an unused category, and detections with equal scores and misses."""
    rng = np.random.default_rng(seed)
    gt = {"images": [], "annotations": [], "categories": [{"id": c, "name": str(c)} for c in (1, 3, 4, 9)]}
    results = []
    for number in range(1, images + 1):
        height, width = int(rng.integers(60, 220)), int(rng.integers(60, 220))
        gt["images"].append({"id": number, "height": height, "width": width, "file_name": f"{number}.jpg"})
        for _ in range(int(rng.integers(0, 9))):
            x0, y0 = int(rng.integers(0, width - 9)), int(rng.integers(0, height - 9))
            box = (x0, y0, int(rng.integers(x0 + 1, width)), int(rng.integers(y0 + 1, height)))
            rle, category = _rectangle(height, width, box), int(rng.choice([1, 3, 4]))
            identity = len(gt["annotations"]) + 1
            gt["annotations"].append({
                "id": identity, "image_id": number, "category_id": category, "segmentation": rle,
                "area": float(masks.area(rle)) * float(rng.uniform(0.8, 1)), "iscrowd": int(rng.random() < 0.15),
                "bbox": [box[0], box[1], box[2] - box[0], box[3] - box[1]],
            })  # fmt: skip
            for _ in range(int(rng.integers(0, 4))):
                moved = np.clip(np.array(box) + rng.integers(-6, 7, 4), 0, [width, height, width, height])
                a, b, c, d = (int(v) for v in (moved[0], moved[1], max(moved[0], moved[2]), max(moved[1], moved[3])))
                found = {"image_id": number, "category_id": int(rng.choice([category, category, 9]))}
                found |= {
                    "score": float(np.round(rng.random(), 1)),
                    "segmentation": _rectangle(height, width, (a, b, c, d)),
                }
                results.append(found | ({"bbox": [a, b, c - a, d - b]} if with_boxes else {}))
    return gt, results


@needs_coco
@pytest.mark.parametrize("iou_type", ["segm", "bbox"])
def test_the_figures_of_the_shared_check_are_those_expected_to_six_digits(iou_type):
    command = ["score", "--gt", DATA / "coco_ap_check/instances.json", "--iou-type", iou_type]
    command += ["--results", DATA / f"coco_ap_check/{iou_type}_results.json"]
    done = subprocess.run([sys.executable, "-m", "pipeline", *command], cwd=ROOT, capture_output=True, text=True)
    expected = json.loads((DATA / "coco_ap_check/expected.json").read_text())[iou_type]
    assert done.stderr == ""
    assert list(json.loads(done.stdout)) == list(expected)
    assert json.loads(done.stdout) == expected


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("iou_type", ["segm", "bbox"])
def test_figures_are_pycocotools_with_crowd_regions_equal_scores_and_an_unused_category(tmp_path, seed, iou_type):
    gt, results = _world(seed, with_boxes=seed % 2 == 0 or iou_type == "bbox")
    ours, theirs = _score(gt, results, tmp_path, iou_type), _pycocotools(gt, results, iou_type)
    assert ours == {name: pytest.approx(value, abs=1e-6) for name, value in theirs.items()}
    assert -1 < ours["AP"] < 1


@needs_lvis
@pytest.mark.parametrize("iou_type", ["segm", "bbox"])
@pytest.mark.parametrize("with_boxes", [True, False])
def test_figures_on_lvis_are_those_of_the_lvis_package(tmp_path, monkeypatch, iou_type, with_boxes):
    monkeypatch.setattr(np, "float", float, raising=False)  # which lvis calls, and numpy 2 does not have
    gt = json.loads((DATA / "lvis_v05/lvis_val_100.json").read_text())
    results = _lvis_detections(gt, with_boxes or iou_type == "bbox")
    ours = _score(gt, results, tmp_path, iou_type, lvis=True)
    truth = lvis.LVIS(str(tmp_path / "gt.json"))
    scorer = lvis.LVISEval(truth, lvis.LVISResults(truth, copy.deepcopy(results)), iou_type)
    scorer.run()
    assert list(ours) == list(scorer.results)
    assert ours == {name: pytest.approx(value, abs=1e-6) for name, value in scorer.results.items()}
    assert ours["APr"] > 0
    assert len({ours[name] for name in ("AP", "APr", "APc", "APf")}) == 4


def _lvis_detections(gt, with_boxes):
    """The annotations, moved and rescored; some of wrong categories; on one image more than 300."""
    rng = np.random.default_rng(0)
    sizes = {image["id"]: (image["height"], image["width"]) for image in gt["images"]}
    crowded = gt["images"][0]["id"]
    results = []
    for annotation in gt["annotations"]:
        height, width = sizes[annotation["image_id"]]
        mask = masks.decode(masks.from_segmentation(annotation["segmentation"], (height, width)))
        for _ in range(100 if annotation["image_id"] == crowded else int(rng.integers(1, 4))):
            rle = masks.encode(np.roll(mask, tuple(rng.integers(-2, 3, 2)), axis=(0, 1)))
            category = annotation["category_id"] if rng.random() < 0.8 else int(rng.integers(1, 1231))
            found = {"image_id": annotation["image_id"], "category_id": category, "score": float(rng.random())}
            box = coco_mask.toBbox(rle | {"counts": rle["counts"].encode()}).tolist()
            results.append(found | {"segmentation": rle} | ({"bbox": box} if with_boxes else {}))
    assert sum(r["image_id"] == crowded for r in results) > 300
    return results


def test_no_detections_score_zero_where_there_is_something_to_find_and_minus_one_elsewhere(tmp_path):
    gt, _ = _world(1)
    for annotation in gt["annotations"]:
        annotation["area"] = 5000.0
    figures = _score(gt, [], tmp_path)
    assert {figures[name] for name in ("AP", "AP50", "AP75", "APm", "AR1", "AR100", "ARm")} == {0.0}
    assert {figures[name] for name in ("APs", "APl", "ARs", "ARl")} == {-1.0}


def test_annotations_without_a_single_instance_score_minus_one(tmp_path):
    gt, results = _world(1)
    assert set(_score(gt | {"annotations": []}, results, tmp_path).values()) == {-1.0}


def test_an_annotation_of_id_0_counts_like_any_other(tmp_path):
    gt, results = _world(2)
    expected = _score(gt, results, tmp_path)
    gt["annotations"][0]["id"] = 0
    assert _score(gt, results, tmp_path) == expected


def test_polygons_and_uncompressed_codes_are_read_on_both_sides(tmp_path):
    gt, results = _world(3)
    expected = _score(gt, results, tmp_path)
    for record in (*gt["annotations"], *results):
        columns = masks.decode(record["segmentation"]).ravel(order="F")
        edges = np.flatnonzero(np.diff(columns)) + 1
        runs = np.diff(np.concatenate([[0], edges, [len(columns)]])).tolist()
        counts = [0, *runs] if columns[0] else runs
        record["segmentation"] = {"size": record["segmentation"]["size"], "counts": counts}
    assert _score(gt, results, tmp_path) == expected


def test_a_one_pixel_mask_can_be_found(tmp_path):
    gt = {"images": [{"id": 1, "height": 5, "width": 7}], "categories": [{"id": 1}]}
    gt["annotations"] = [{"id": 7, "image_id": 1, "category_id": 1, "segmentation": _rectangle(5, 7, (6, 4, 7, 5))}]
    found = {"image_id": 1, "category_id": 1, "score": 0.1, "segmentation": _rectangle(5, 7, (6, 4, 7, 5))}
    assert _score(gt, [found], tmp_path)["APs"] == pytest.approx(1)


_BAD = {"size": [60, 60], "counts": "xyz~~"}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda gt, r: r[1].update(score=float("nan")), r"results\.json: 1\.score: .*finite number, not nan"),
        (lambda gt, r: r[1].update(score=float("inf")), r"results\.json: 1\.score: .*finite"),
        (lambda gt, r: r[1].update(score="high"), r"results\.json: 1\.score: .*valid number, not 'high'"),
        (lambda gt, r: r[1].pop("score"), r"results\.json: 1\.score: Field required"),
        (lambda gt, r: r[1].update(image_id=999), r"detection 1 .*have no image 999"),
        (lambda gt, r: r[1].update(category_id=999), r"detection 1 .*have no category 999"),
        (lambda gt, r: r[1].update(segmentation=_BAD), r"detection 1 .*RLE's size must be"),
        (lambda gt, r: r[1].update(segmentation={**r[1]["segmentation"], "counts": "0~"}), r"detection 1 .*describe"),
        (lambda gt, r: r[1].update(segmentation=None), "detection 1 .*has no segmentation"),
        (lambda gt, r: r[1].update(bbox=[1, 2, -3, 4]), r"results\.json: 1\.bbox: bbox must be x, y, width and height"),
        (lambda gt, r: r[1].update(bbox=[1, 2, 3]), r"results\.json: 1\.bbox: .*at least 4"),
        (lambda gt, r: gt["annotations"][1].update(id=1), r"gt\.json: annotation id 1 occurs 2 times"),
        (lambda gt, r: gt["images"][1].update(id=1), r"gt\.json: image id 1 occurs 2 times"),
        (lambda gt, r: gt["categories"][1].update(id=1), r"gt\.json: category id 1 occurs 2 times"),
        (lambda gt, r: gt["annotations"][1].update(image_id=77), "annotation 2 is of image 77"),
        (lambda gt, r: gt["annotations"][1].update(category_id=77), "annotation 2 is of category 77"),
        (lambda gt, r: gt["annotations"][1].update(segmentation=[[1, 2]]), "annotation 2: a polygon must be"),
        (lambda gt, r: gt["annotations"][1].pop("segmentation"), "annotation 2: it has no segmentation"),
        (lambda gt, r: gt.update(categories=[]), "lists no categories"),
        (lambda gt, r: gt.pop("images"), r"gt\.json: images: Field required"),
    ],
)
def test_what_cannot_be_scored_is_refused_with_file_and_record(tmp_path, change, says):
    gt, results = _world(4)
    change(gt, results)
    with pytest.raises(InputError, match=says):
        _score(gt, results, tmp_path)


HUGE = {"height": 1 << 31, "width": 1 << 31}
FAR = {"segmentation": [[0, 0, 1 << 32, 0, 1 << 32, 1]]}
HOSTILE = {
    "size 2^31 x 2^31": (lambda gt, r: gt["images"][0].update(HUGE), r"gt\.json: images\.0\.height: "),
    "size 1 x 2^31 and a far polygon": (
        lambda gt, r: (gt["images"][0].update(height=1, width=1 << 31), gt["annotations"][0].update(FAR)),
        r"images\.0\.width: ",
    ),
    "rle of 10^5 x 10^5": (
        lambda gt, r: gt["images"][0].update(height=10**5, width=10**5),
        r"images\.0\.height: .*16384",
    ),
    "image id of 2^64": (lambda gt, r: gt["images"][0].update(id=1 << 64), r"images\.0\.id: "),
    "negative image id": (lambda gt, r: gt["images"][0].update(id=-1), r"images\.0\.id: "),
    "image id of 2^64 in results": (lambda gt, r: r[0].update(image_id=1 << 64), r"results\.json: 0\.image_id: "),
    "category id of 2^64": (lambda gt, r: gt["categories"][0].update(id=1 << 64), r"categories\.0\.id: "),
    "iscrowd of 2^40": (lambda gt, r: gt["annotations"][0].update(iscrowd=1 << 40), r"annotations\.0\.iscrowd"),
    "polygon of 10^30": (
        lambda gt, r: gt["annotations"][0].update(segmentation=[[0, 0, 1e30, 0, 0, 1]]),
        "annotation 1: a polygon must lie in or near",
    ),
    "polygon of 400 digits": (
        lambda gt, r: gt["annotations"][0].update(segmentation=[[0, 0, 10**400, 0, 0, 1]]),
        "annotation 1: a polygon must be",
    ),
    "true as counts": (
        lambda gt, r: gt["annotations"][0].update(
            segmentation={"size": [gt["images"][0][k] for k in ("height", "width")], "counts": [True] * 4800}
        ),
        "annotation 1: an RLE's",
    ),
    "negative box": (lambda gt, r: gt["annotations"][0].update(bbox=[1, 2, -3, 4]), r"annotations\.0\.bbox: "),
    "box of 10^300": (lambda gt, r: gt["annotations"][0].update(bbox=[1, 2, 1e300, 1e300]), r"annotations\.0\.bbox"),
    "box of 400 digits": (lambda gt, r: r[0].update(bbox=[1, 2, 10**400, 4]), r"results\.json: 0\.bbox\.2: "),
    "negative area": (lambda gt, r: gt["annotations"][0].update(area=-1.0), r"annotations\.0\.area: "),
    "score of 400 digits": (lambda gt, r: r[0].update(score=10**400), r"results\.json: 0\.score: "),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_annotations_and_detections_are_refused_with_file_and_record(tmp_path, case):
    change, says = HOSTILE[case]
    gt, results = _world(4)
    change(gt, results)
    with pytest.raises(InputError, match=says) as refused:
        _score(gt, results, tmp_path)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("side", ["gt.json", "results.json"])
def test_a_fifo_is_refused_instead_of_waited_for(tmp_path, side):
    gt, results = _world(4)
    _score(gt, results, tmp_path)
    (tmp_path / side).unlink()
    os.mkfifo(tmp_path / side)
    with pytest.raises(InputError, match=f"{side} cannot be read .*FIFO"):
        score(gt=tmp_path / "gt.json", results=tmp_path / "results.json", iou_type="segm", lvis=False)


@pytest.mark.parametrize(
    ("results", "says"),
    [
        ("[{", r"results\.json is not JSON"),
        ("", r"results\.json is not JSON"),
        ("{}", r"results\.json: the top level: .*valid (list|array)"),
        ("[3]", r"results\.json: 0: .*an object, not 3"),
    ],
)
def test_what_is_no_list_of_detections_is_refused(tmp_path, results, says):
    with pytest.raises(InputError, match=says):
        _score(_world(5)[0], results, tmp_path)


def test_coco_annotations_are_refused_under_lvis_rules(tmp_path):
    with pytest.raises(InputError, match=r"frequency None, but LVIS requires r, c or f"):
        _score(*_world(6), tmp_path, lvis=True)


def test_an_absent_file_is_one_line_and_exit_code_2(tmp_path):
    command = ["score", "--gt", tmp_path / "no.json", "--results", tmp_path / "no.json", "--iou-type", "segm"]
    done = subprocess.run([sys.executable, "-m", "pipeline", *command], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
    assert "no.json cannot be read (No such file or directory)" in done.stderr
