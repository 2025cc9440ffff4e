"""Masks from the command `predict`: every format, exact coordinates, resumption, hostile files."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from pipeline.__main__ import main
from pipeline.core.artifact import Card, Contents
from pipeline.core.config import section
from pipeline.core.log import silent
from pipeline.data.shards import Shards
from pipeline.models import build
from pipeline.models.sam import save_checkpoint
from pipeline.ops import masks
from pipeline.ops.outlines import polygons
from pipeline.predict.finished import finished
from pipeline.prepare import PrepareConfig, prepare
from pipeline.runtime import Predictor, load
from pipeline.teacher import TeacherConfig, teacher

NANO = "efficientvit_sam_nano"
SIZES = {"odd.png": (61, 97), "tiny.png": (2, 3), "sub/big.jpg": (1200, 1501), "sub/grey.png": (80, 80)}
"""Height and width."""
BOXES = [
    {"file_name": "odd.png", "bbox": [10, 12.5, 40, 30], "score": 0.9, "category_id": 3},
    {"file_name": "odd.png", "bbox": [60, 5, 30, 50], "score": 0.4, "category_id": 5},
    {"file_name": "tiny.png", "bbox": [0, 0, 2, 2], "score": 0.8, "category_id": 3},
    {"file_name": "sub/big.jpg", "bbox": [100, 200, 1300, 700], "score": 0.7, "category_id": 5},
]


def scene(size, seed=0):
    """A disc and a rectangle on a noisy background."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(60, 90, (*size, 3), dtype=np.uint8)
    height, width = size
    cv2.circle(pixels, (width // 3, height // 2), max(1, min(size) // 4), (60, 220, 90), -1)
    cv2.rectangle(pixels, (2 * width // 3, height // 5), (width - 3, height // 2), (40, 90, 230), -1)
    return pixels


def sealed(folder, contents):
    Card.seal(folder, contents, {})
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A student with fresh weights."""
    folder = tmp_path_factory.mktemp("model")
    save_checkpoint(build(NANO, seed=1), folder)
    return sealed(folder, Contents(kind="checkpoint", model=NANO, precision="fp32"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """The bundled teacher."""
    folder = tmp_path_factory.mktemp("teacher")
    return sealed(folder, teacher(TeacherConfig(name="bundled"), out=folder, log=silent))


@pytest.fixture
def photos(tmp_path):
    folder = tmp_path / "photos"
    (folder / "sub").mkdir(parents=True)
    for name, size in SIZES.items():
        pixels = scene(size)
        Image.fromarray(pixels[..., 0] if "grey" in name else pixels).save(folder / name)
    return folder


def written(path, content):
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def run(*arguments, code=0):
    assert main(["predict", *map(str, arguments), "--threads", "1"]) == code


def instances(out):
    return json.loads((out / "instances.json").read_text())


def by_name(out):
    """Annotations by image name."""
    content = instances(out)
    names = {image["id"]: image["file_name"] for image in content["images"]}
    grouped = {name: [] for name in names.values()}
    for annotation in content["annotations"]:
        grouped[names[annotation["image_id"]]].append(annotation)
    return grouped


def tree(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()
    }


def test_boxes_give_the_masks_of_the_predictor_in_pixels_of_the_image(model, photos, tmp_path, capsys):
    run(model, photos, "--boxes", written(tmp_path / "boxes.json", BOXES), "--out", tmp_path / "out")
    assert capsys.readouterr().out == f"4 masks in 4 images: {tmp_path / 'out/instances.json'}\n"
    coco = COCO(tmp_path / "out/instances.json")
    assert {image["file_name"]: (image["height"], image["width"]) for image in coco.imgs.values()} == SIZES
    assert [category["name"] for category in coco.cats.values()] == ["category_3", "category_5"]
    predictor, grouped = Predictor(load(model, threads=1)), by_name(tmp_path / "out")
    for entry, box in enumerate(BOXES):
        (annotation,) = [a for a in grouped[box["file_name"]] if a["prompt"] == entry]
        predictor.set_image(np.asarray(Image.open(photos / box["file_name"]).convert("RGB")))
        x, y, width, height = box["bbox"]
        best = predictor.predict_best(boxes=[[x, y, x + width, y + height]])
        assert (coco.annToMask(annotation) == best.masks[0]).all()
        assert annotation["score"] == pytest.approx(best.iou_predictions[0], abs=1e-6)
        assert (annotation["detection_score"], annotation["category_id"]) == (box["score"], box["category_id"])
        assert annotation["area"] == best.masks[0].sum()
        x0, y0, x1, y1 = masks.box(best.masks[0])
        assert annotation["bbox"] == [x0, y0, x1 - x0, y1 - y0]
    assert grouped["sub/grey.png"] == []
    assert not (tmp_path / "out/.partial").exists()


def test_points_of_different_numbers_give_the_masks_of_the_predictor(model, photos, tmp_path):
    points = [
        {"file_name": "odd.png", "points": [[30, 30]], "labels": [1]},
        {"file_name": "odd.png", "points": [[30, 30], [80, 20]], "labels": [1, 0]},
        {"file_name": "odd.png", "points": [[75, 18]]},
    ]
    run(model, photos, "--points", written(tmp_path / "points.json", points), "--out", tmp_path / "out")
    predictor, expected = Predictor(load(model, threads=1)), []
    predictor.set_image(np.asarray(Image.open(photos / "odd.png")))
    for number, entry in enumerate(points):
        labels = entry.get("labels", [1])
        best = predictor.predict_best(np.array([entry["points"]], float), np.array([labels]))
        if best.masks.any():  # weights are fresh
            expected.append((number, 1, masks.encode(best.masks[0])))
    annotations = by_name(tmp_path / "out")["odd.png"]
    assert [(a["prompt"], a["category_id"], a["segmentation"]) for a in annotations] == expected
    assert len(expected) > 1
    summary = json.loads((tmp_path / "out/predict.json").read_text())
    assert summary["masks"] + summary["prompts_without_mask"] == 3
    assert instances(tmp_path / "out")["categories"] == [{"id": 1, "name": "object", "supercategory": ""}]


def test_everything_is_the_default_and_min_score_its_threshold(trained, tmp_path):
    from pipeline.runtime import EverythingSettings, everything

    pixels = scene((160, 200))
    Image.fromarray(pixels).save(tmp_path / "scene.png")
    run(trained, tmp_path / "scene.png", "--min-score", "0.5", "--out", tmp_path / "out", "--overlays")
    settings = EverythingSettings(pred_iou_thresh=0.5, output_mode="coco_rle")
    records = everything(Predictor(load(trained, threads=1)), pixels, settings=settings)
    assert len(records) > 0
    annotations = instances(tmp_path / "out")["annotations"]
    assert [a["segmentation"] for a in annotations] == [record["segmentation"] for record in records]
    overlay = np.asarray(Image.open(tmp_path / "out/overlays/scene.jpg"))
    assert overlay.shape == pixels.shape
    covered = np.any([masks.decode(a["segmentation"]) for a in annotations], axis=0)
    assert np.abs(overlay.astype(int) - pixels)[covered].mean() > 20


def test_label_maps_hold_every_object_with_smaller_ones_on_top(model, photos, tmp_path):
    boxes = written(tmp_path / "boxes.json", BOXES)
    run(model, photos, "--boxes", boxes, "--format", "png", "--out", tmp_path / "png")
    run(model, photos, "--boxes", boxes, "--out", tmp_path / "coco")
    objects = {image["file_name"]: image for image in json.loads((tmp_path / "png/objects.json").read_text())["images"]}
    for name, annotations in by_name(tmp_path / "coco").items():
        labels = np.asarray(Image.open(tmp_path / "png" / objects[name]["label_map"]))
        assert (labels.dtype, labels.shape) == (np.uint16, SIZES[name])
        union = np.zeros(labels.shape, bool)
        for value, annotation in sorted(enumerate(annotations, start=1), key=lambda pair: pair[1]["area"]):
            mask = masks.decode(annotation["segmentation"])
            assert (labels[mask & ~union] == value).all()
            union |= mask
        assert ((labels > 0) == union).all()
        assert [entry["value"] for entry in objects[name]["objects"]] == list(range(1, len(annotations) + 1))


def test_yolo_labels_draw_the_masks_again(model, photos, tmp_path):
    import yaml

    boxes = written(tmp_path / "boxes.json", BOXES)
    run(model, photos, "--boxes", boxes, "--format", "yolo", "--out", tmp_path / "yolo")
    data = yaml.safe_load((tmp_path / "yolo/data.yaml").read_text())
    assert data == {"train": "images", "val": "images", "names": {0: "category_3", 1: "category_5"}}
    assert (tmp_path / "yolo/images/sub/big.jpg").read_bytes() == (photos / "sub/big.jpg").read_bytes()
    assert (tmp_path / "yolo/labels/sub/grey.txt").read_text() == ""
    lines = [line.split() for line in (tmp_path / "yolo/labels/odd.txt").read_text().splitlines()]
    assert {int(line[0]) for line in lines} <= {0, 1}
    assert all(len(line) >= 7 and len(line) % 2 for line in lines)
    assert all(0 <= float(value) <= 1 for line in lines for value in line[1:])


def test_a_polygon_covers_its_mask_and_a_single_pixel_has_one():
    mask = np.zeros((50, 60), bool)
    mask[10:40, 5:50], mask[2, 3] = True, True
    single, large = polygons(mask)
    assert single.tolist() == [[3, 2], [4, 2], [4, 3], [3, 3]]
    drawn = masks.decode(masks.from_segmentation([large.ravel().tolist()], (50, 60)))
    assert (drawn & mask).sum() / (drawn | mask).sum() > 0.94


def exif(orientation):
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


STORED = {6: Image.Transpose.ROTATE_90, 3: Image.Transpose.ROTATE_180, 2: Image.Transpose.FLIP_LEFT_RIGHT}
"""How the pixels of an upright image are stored under an orientation tag."""


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("size", [(60, 90), (70, 70)])
def test_a_box_lands_right_on_a_photograph_that_its_exif_tag_turns(model, tmp_path, orientation, size):
    folder = tmp_path / "photos"
    folder.mkdir()
    upright = Image.fromarray(scene(size))
    upright.save(folder / "upright.png")
    upright.save(folder / "again.png")
    upright.transpose(STORED[orientation]).save(folder / "turned.png", exif=exif(orientation))
    boxes = [{"file_name": name, "bbox": [8, 10, 40, 30]} for name in ("upright.png", "turned.png", "again.png")]
    run(model, folder, "--boxes", written(tmp_path / "boxes.json", boxes), "--out", tmp_path / "out")
    assert {(image["height"], image["width"]) for image in instances(tmp_path / "out")["images"]} == {size}
    grouped = by_name(tmp_path / "out")
    assert len({json.dumps(annotations[0]["segmentation"]) for annotations in grouped.values()}) == 1
    first, *others = prepared(tmp_path / "dataset", folder, tmp_path / "out/instances.json")
    assert len(others) == 2
    for sample in others:
        assert (sample.image == first.image).all()
        assert sample.annotations[0]["segmentation"] == first.annotations[0]["segmentation"]


def prepared(out, images, annotations):
    """Samples of the dataset that `prepare` makes of predicted masks."""
    out.mkdir()
    source = {"kind": "coco", "annotations": os.path.relpath(annotations, images.parent), "images": images.name}
    source |= {"calibration_images": 1, "validation_images": 1, "min_area_px": 1}
    params = {"prepare": {"data": str(images.parent), "source": source}}
    prepare(section(params, "prepare", PrepareConfig), out=out, log=silent)
    return [sample for split in ("train", "calibration", "validation") for sample in Shards(out, split)]


def test_a_json_that_states_the_stored_size_gets_masks_of_the_stored_pixels(model, tmp_path):
    folder = tmp_path / "photos"
    folder.mkdir()
    stored = Image.fromarray(scene((90, 60)))
    stored.save(folder / "plain.png")
    stored.save(folder / "tagged.png", exif=exif(6))
    images = [{"id": i, "file_name": n, "height": 90, "width": 60} for i, n in ((7, "plain.png"), (4, "tagged.png"))]
    boxes = [{"image_id": i, "bbox": [8, 10, 40, 30], "category_id": 2} for i in (7, 4)]
    content = {"images": images, "annotations": boxes, "categories": [{"id": 2, "name": "disc"}]}
    run(model, folder, "--boxes", written(tmp_path / "boxes.json", content), "--out", tmp_path / "out")
    plain, tagged = by_name(tmp_path / "out").values()
    assert plain[0]["segmentation"] == tagged[0]["segmentation"]
    assert {image["file_name"]: image["id"] for image in instances(tmp_path / "out")["images"]} == {
        "plain.png": 7, "tagged.png": 4,
    }  # fmt: skip
    assert instances(tmp_path / "out")["categories"][0]["name"] == "disc"


def test_predicted_masks_are_the_source_of_the_next_run(model, photos, tmp_path):
    run(model, photos, "--boxes", written(tmp_path / "boxes.json", BOXES), "--out", tmp_path / "out")
    samples = {
        sample.image.shape[:2]: sample
        for sample in prepared(tmp_path / "data", photos, tmp_path / "out/instances.json")
    }
    grouped = by_name(tmp_path / "out")
    assert set(samples) == {SIZES[name] for name, annotations in grouped.items() if annotations}
    for name, annotations in grouped.items():
        if annotations:
            kept = [a["segmentation"] for a in samples[SIZES[name]].annotations]
            assert kept == [a["segmentation"] for a in annotations]


RESULTS = [{"image_id": 1, "category_id": 5, "bbox": [10, 12, 40, 30], "score": 0.9}]
LISTING = {"images": [{"id": 1, "file_name": "odd.png", "height": 61, "width": 97}], "categories": []}


def test_every_layout_of_boxes_gives_the_same_masks(model, photos, tmp_path):
    listing = written(tmp_path / "listing.json", LISTING)
    named = [RESULTS[0] | {"file_name": "odd.png"}]
    layouts = {
        "ids": (RESULTS, ["--annotations", listing]),
        "names": (named, []),
        "coco": (LISTING | {"annotations": RESULTS}, []),
    }
    given = []
    for name, (content, more) in layouts.items():
        run(model, photos, "--boxes", written(tmp_path / f"{name}.json", content), *more, "--out", tmp_path / name)
        given.append(by_name(tmp_path / name)["odd.png"][0] | {"image_id": 0})
    assert given[0] == given[1] == given[2]


def test_exported_files_give_the_masks_of_their_checkpoint(exported, photos, tmp_path):
    artifacts, boxes = exported(NANO), written(tmp_path / "boxes.json", BOXES)
    for kind in ("checkpoint", "onnx"):
        run(artifacts[kind], photos, "--boxes", boxes, "--out", tmp_path / kind)
    pairs = zip(*(instances(tmp_path / kind)["annotations"] for kind in ("checkpoint", "onnx")), strict=True)
    for checkpoint, onnx in pairs:
        a, b = (masks.decode(annotation["segmentation"]) for annotation in (checkpoint, onnx))
        assert checkpoint["image_id"] == onnx["image_id"]
        assert (a & b).sum() / (a | b).sum() > 0.98


def test_low_scores_and_crowds_are_left_out(model, photos, tmp_path):
    boxes = written(tmp_path / "boxes.json", [*BOXES, BOXES[0] | {"iscrowd": 1}])
    run(model, photos, "--boxes", boxes, "--min-score", "0.5", "--out", tmp_path / "out")
    assert [a["prompt"] for a in by_name(tmp_path / "out")["odd.png"]] == [0]


def test_a_list_of_images_is_a_part_of_those_with_boxes(model, photos, tmp_path, capsys):
    (tmp_path / "list.txt").write_text("photos/odd.png\n\nphotos/tiny.png\n")
    boxes = written(tmp_path / "boxes.json", BOXES)
    run(model, tmp_path / "list.txt", "--boxes", boxes, "--out", tmp_path / "out", "--json")
    printed = capsys.readouterr()
    assert json.loads(printed.out)["masks"] == 3
    assert "prompts for 1 images that are not to be predicted" in printed.err
    assert set(by_name(tmp_path / "out")) == {"odd.png", "tiny.png"}


def test_a_folder_of_results_within_the_images_is_not_predicted(model, photos):
    for _ in range(2):
        run(model, photos, "--boxes", written(photos / "boxes.json", BOXES), "--out", photos / "out", "--overlays")
    assert set(by_name(photos / "out")) == set(SIZES)


@pytest.fixture
def many(tmp_path):
    """Sixteen images and their boxes."""
    folder = tmp_path / "many"
    folder.mkdir()
    boxes = []
    for i in range(16):
        Image.fromarray(scene((60, 80), seed=i)).save(folder / f"{i:02d}.png")
        boxes.append({"file_name": f"{i:02d}.png", "bbox": [5, 5, 50, 45]})
    return folder, written(tmp_path / "boxes.json", boxes)


@pytest.mark.parametrize("format_", ["coco", "png"])
def test_a_killed_prediction_resumes_and_ends_with_the_same_bytes(model, many, tmp_path, monkeypatch, format_):
    folder, boxes = many
    options = [model, folder, "--boxes", boxes, "--format", format_, "--overlays"]
    run(*options, "--out", tmp_path / "undisturbed")
    command = [sys.executable, "-m", "pipeline", "predict", *map(str, options), "--threads", "1"]
    process = subprocess.Popen([*command, "--out", str(tmp_path / "out")], cwd=Path(__file__).parents[2])
    results, deadline = tmp_path / "out/.partial/results.jsonl", time.monotonic() + 120
    while not (results.is_file() and results.read_bytes().count(b"\n") > 3):
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    stored = results.read_bytes().count(b"\n") - 1
    assert 3 <= stored < 16
    with results.open("ab") as stream:
        stream.write(b'{"name": "15.png", "dig')
    assert not (tmp_path / "out/instances.json").exists()
    encoded = counted(monkeypatch)
    run(*options, "--out", tmp_path / "out")
    assert len(encoded) == 16 - stored
    assert tree(tmp_path / "out") == tree(tmp_path / "undisturbed")


def counted(monkeypatch):
    """A list that grows with every image the model encodes."""
    encoded, original = [], Predictor.set_image

    def set_image(self, image, *arguments):
        encoded.append(image.shape)
        return original(self, image, *arguments)

    monkeypatch.setattr(Predictor, "set_image", set_image)
    return encoded


def test_a_skipped_image_is_named_nothing_is_lost_and_only_it_is_repeated(model, many, tmp_path, capsys, monkeypatch):
    folder, boxes = many
    good = (folder / "07.png").read_bytes()
    (folder / "07.png").write_bytes(good[:200])
    run(model, folder, "--boxes", boxes, "--out", tmp_path / "out", code=2)
    error = capsys.readouterr().err
    assert "skipped 07.png: 07.png is damaged" in error
    assert error.splitlines()[-1].startswith("error: 1 of 16 images were skipped: 07.png. The others are in")
    assert len(instances(tmp_path / "out")["annotations"]) == 15
    (folder / "07.png").write_bytes(good)
    encoded = counted(monkeypatch)
    run(model, folder, "--boxes", boxes, "--out", tmp_path / "out")
    assert len(encoded) == 1
    run(model, folder, "--boxes", boxes, "--out", tmp_path / "at_once")
    assert tree(tmp_path / "out") == tree(tmp_path / "at_once")


def test_two_processes_do_not_write_to_one_folder(model, photos, tmp_path, capsys):
    options = [model, photos, "--boxes", written(tmp_path / "boxes.json", BOXES), "--out", tmp_path / "out"]
    run(*options)
    with finished(tmp_path / "out", "another"):
        run(*options, code=2)
    assert "another process is writing to" in capsys.readouterr().err


def test_another_option_starts_over_and_another_box_repeats_its_image(model, many, tmp_path, monkeypatch):
    folder, boxes = many
    (folder / "07.png").write_bytes(b"no image")
    options = [model, folder, "--boxes", boxes, "--out", tmp_path / "out"]
    encoded = counted(monkeypatch)
    run(*options, code=2)
    run(*options, code=2)
    assert len(encoded) == 15
    run(*options, "--min-score", "0.1", code=2)
    assert len(encoded) == 2 * 15
    content = json.loads(boxes.read_text())
    content[3]["bbox"] = [1, 1, 20, 20]
    written(boxes, content)
    run(*options, "--min-score", "0.1", code=2)
    assert len(encoded) == 2 * 15 + 1


def test_an_earlier_prediction_is_replaced_and_other_files_are_never_touched(model, photos, tmp_path, capsys):
    boxes = written(tmp_path / "boxes.json", BOXES)
    run(model, photos, "--boxes", boxes, "--format", "yolo", "--out", tmp_path / "out", "--overlays")
    run(model, photos, "--boxes", boxes, "--out", tmp_path / "out")
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"instances.json", "predict.json"}
    assert set(tree(photos)) == set(SIZES)
    run(model, photos, "--boxes", boxes, "--out", photos, code=2)
    assert f"--out {photos} holds other files" in capsys.readouterr().err
    assert set(tree(photos)) == set(SIZES)


BOX = {"file_name": "odd.png", "bbox": [1, 2, 30, 40]}


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("[{", "is not JSON ("),
        ('"boxes"', "the top level: Input should be a valid array, not 'boxes'"),
        ([{"file_name": "odd.png"}], "0.bbox: Field required"),
        ([BOX | {"bbox": [1, 2, -3, 4]}], "0.bbox.2: Input should be greater than or equal to 0, not -3"),
        ('[{"file_name": "odd.png", "bbox": [1, NaN, 3, 4]}]', "0.bbox.1: Input should be a finite number, not nan"),
        ([BOX, BOX | {"bbox": [1, 2, "3", 4]}], "1.bbox.2: Input should be a valid number, not '3'"),
        ([BOX | {"bbox": [1, 2, 3]}], "0.bbox.3: Field required"),
        ([BOX | {"score": True}], "0.score: Input should be a valid number"),
        ([BOX | {"category_id": "cat"}], "0.category_id: Input should be a valid integer"),
        ([BOX | {"bbox": [0.1, 0.2, 0.3, 0.4]}], "all boxes lie between 0 and 1"),
        (
            [BOX, BOX | {"file_name": "other.png"}],
            "entry 1 (counted from 0) belongs to 'other.png', which is not among",
        ),
        ([BOX | {"file_name": "../odd.png"}], "has file_name '../odd.png': it must be relative"),
        ([{"bbox": [1, 2, 3, 4]}], "entry 0 (counted from 0) has neither file_name nor image_id"),
        (RESULTS, "entry 0 (counted from 0) has image_id, but no file_name"),
        ({"images": []}, "annotations: Field required"),
        (LISTING | {"annotations": [RESULTS[0] | {"image_id": 9}]}, "is of image 9, which"),
        (
            LISTING | {"annotations": RESULTS, "categories": [{"id": 1, "name": "cat"}]},
            "entry 0 (counted from 0) has category 5, which",
        ),
    ],
)
def test_a_bad_file_of_boxes_is_one_line_before_any_work(photos, tmp_path, model, capsys, content, says):
    run(model, photos, "--boxes", written(tmp_path / "boxes.json", content), "--out", tmp_path / "out", code=2)
    error = capsys.readouterr().err
    assert error.startswith(f"error: {tmp_path / 'boxes.json'}")
    assert says in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ({"points": []}, "is an object, not a list"),
        ([{"file_name": "odd.png", "points": []}], "0.points: List should have at least 1 item"),
        ([{"file_name": "odd.png", "points": [[1, 2]], "labels": [2]}], "0.labels.0: Input should be 0 or 1"),
        ([{"file_name": "odd.png", "points": [[1, 2]], "labels": [1, 0]}], "has 1 points and 2 labels"),
        ('[{"file_name": "odd.png", "points": [[1, Infinity]]}]', "0.points.0.1: Input should be a finite number"),
    ],
)
def test_a_bad_file_of_points_is_one_line_before_any_work(photos, tmp_path, model, capsys, content, says):
    run(model, photos, "--points", written(tmp_path / "points.json", content), "--out", tmp_path / "out", code=2)
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_box_outside_of_its_image_skips_the_image(model, photos, tmp_path, capsys):
    boxes = [BOX | {"bbox": [1000, 10, 20, 20]}, BOX | {"file_name": "tiny.png", "bbox": [0, 0, 2, 2]}]
    run(model, photos, "--boxes", written(tmp_path / "boxes.json", boxes), "--out", tmp_path / "out", code=2)
    assert "skipped odd.png: box xyxy [1000.0, 10.0, 1020.0, 30.0] of entry 0 is outside" in capsys.readouterr().err
    assert len(by_name(tmp_path / "out")["tiny.png"]) == 1


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--boxes", "boxes.json", "--everything"], "--boxes and --everything exclude each other"),
        (["--annotations", "boxes.json"], "--annotations names the images of --boxes or --points"),
        (["--min-score", "nan"], "--min-score must lie in [0, 1], not nan"),
        (["--boxes", "missing.json"], "missing.json cannot be read (No such file or directory)"),
        (["--format", "gif"], "gif"),
    ],
)
def test_options_that_do_not_fit_are_one_line(model, photos, tmp_path, capsys, options, says):
    run(model, photos, *options, "--out", tmp_path / "out", code=2)
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1


def test_sources_that_are_no_images_are_one_line(model, photos, tmp_path, capsys):
    (photos / "empty").mkdir()
    (tmp_path / "weights.bin").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "twice.txt").write_text("photos/odd.png\nphotos/odd.png\n")
    for source, says in (
        (tmp_path / "absent", "does not exist"),
        (photos / "empty", "holds no images"),
        (tmp_path / "weights.bin", "is not UTF-8 text"),
        (tmp_path / "twice.txt", "odd.png 2 times"),
    ):
        run(model, source, "--out", tmp_path / "out", code=2)
        assert says in capsys.readouterr().err


def test_images_that_would_share_a_label_file_are_refused_for_yolo_and_told_apart_otherwise(model, photos, tmp_path):
    Image.open(photos / "odd.png").save(photos / "odd.bmp")
    boxes = written(tmp_path / "boxes.json", BOXES)
    run(model, photos, "--boxes", boxes, "--format", "yolo", "--out", tmp_path / "yolo", code=2)
    run(model, photos, "--boxes", boxes, "--format", "png", "--out", tmp_path / "png")
    assert {"labels/odd.png.png", "labels/odd.bmp.png"} <= set(tree(tmp_path / "png"))
