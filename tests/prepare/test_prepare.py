import io
import json
import tarfile

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from pipeline.core.artifact import digest, file_sha256
from pipeline.core.config import section
from pipeline.core.errors import InputError
from pipeline.core.log import silent
from pipeline.data.shards import Shards
from pipeline.ops import masks
from pipeline.prepare import PrepareConfig, prepare

SPLITS = ("train", "calibration", "validation")


CROWD = {"size": [20, 30], "counts": [100, 40, 460]}


def run(out, data, shard_images=3, **source):
    out.mkdir(parents=True)
    params = {"prepare": {"data": str(data), "shard_images": shard_images, "source": source}}
    contents = prepare(section(params, "prepare", PrepareConfig), out=out, log=silent)
    assert contents.kind == "dataset"
    return json.loads((out / "metrics.json").read_text())


@pytest.fixture
def renderer(tmp_path):
    path = tmp_path / "scenes.py"
    path.touch()
    return path


PROCEDURAL = {
    "kind": "procedural",
    "side_px": 64,
    "train": 4,
    "calibration": 2,
    "validation": 3,
    "seed": 1,
    "jpeg_quality": 90,
}
FILES = {"calibration_images": 2, "validation_images": 3, "seed": 0, "min_area_px": 4, "jpeg_quality": 90}
COCO_SOURCE = FILES | {
    "kind": "coco",
    "annotations": "instances.json",
    "images": "images",
}


def square(number, image_id, x=2.0):
    polygon = [x, 2.0, x + 8, 2.0, x + 8, 10.0, x, 10.0]
    return {"id": number, "image_id": image_id, "category_id": 7, "segmentation": [polygon], "iscrowd": 0}


@pytest.fixture
def photographs(tmp_path):
    """Ten photographs of 20 x 30 pixels; 9 has no objects, 10 only a crowd; 3 is grey."""
    root = tmp_path / "mine"
    (root / "images").mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(1, 11):
        pixels = rng.integers(0, 255, (20, 30) if i == 3 else (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{i:04d}.jpg")
    annotations = [square(100 + i, i, x=float(i)) for i in range(1, 9)] + [square(200, 1, x=15.0)]
    annotations.append({"id": 300, "image_id": 10, "category_id": 7, "segmentation": CROWD, "iscrowd": 1})
    content = {
        "images": [{"id": i, "file_name": f"{i:04d}.jpg", "height": 20, "width": 30} for i in range(1, 11)],
        "annotations": annotations,
        "categories": [{"id": 7, "name": "square"}],
    }
    (root / "instances.json").write_text(json.dumps(content))
    return root


def edit(root, change, name="instances.json"):
    content = json.loads((root / name).read_text())
    change(content)
    (root / name).write_text(json.dumps(content))


def test_scenes_become_shards_with_sa1b_records(tmp_path, renderer):
    metrics = run(tmp_path / "out", renderer, **PROCEDURAL)
    assert [metrics[f"{split}_images"] for split in SPLITS] == [4, 2, 3]
    assert len(list((tmp_path / "out/train").glob("*.tar"))) == 2
    samples = [sample for split in SPLITS for sample in Shards(tmp_path / "out", split)]
    annotations = [annotation for sample in samples for annotation in sample.annotations]
    assert len(annotations) == sum(metrics[f"{split}_instances"] for split in SPLITS) > 0
    for annotation in annotations:
        mask = masks.decode(annotation["segmentation"])
        x0, y0, x1, y1 = masks.box(mask)
        (x, y) = annotation["point_coords"][0]
        assert annotation["area"] == mask.sum()
        assert annotation["bbox"] == [x0, y0, x1 - x0, y1 - y0]
        assert (x, y) == masks.center(mask)
        assert mask[int(y), int(x)]
        assert annotation["crop_box"] == [0, 0, 64, 64]


def test_two_runs_are_the_same_to_the_byte_and_another_seed_is_not(tmp_path, renderer):
    for name, change in (("one", {}), ("two", {}), ("three", {"seed": 2})):
        run(tmp_path / name, renderer, **PROCEDURAL | change)
    assert digest(tmp_path / "one") == digest(tmp_path / "two") != digest(tmp_path / "three")


def test_no_scene_occurs_twice(tmp_path, renderer):
    run(tmp_path / "out", renderer, **PROCEDURAL)
    images = [sample.image.tobytes() for split in SPLITS for sample in Shards(tmp_path / "out", split)]
    assert len(set(images)) == 9


def test_photographs_are_divided_into_disjoint_splits(tmp_path, photographs):
    metrics = run(tmp_path / "out", photographs, **COCO_SOURCE)
    keys = {split: set(Shards(tmp_path / "out", split).keys) for split in SPLITS}
    assert [len(keys[split]) for split in SPLITS] == [3, 2, 3]
    assert set.union(*keys.values()) == {f"{i:04d}" for i in range(1, 9)}
    assert metrics["left_out_crowd_regions"] == 1
    assert metrics["left_out_images_without_objects"] == 2
    assert sum(metrics[f"{split}_instances"] for split in SPLITS) == 9
    assert metrics["train_small_instances"] == metrics["train_instances"]


def test_the_split_follows_keys_and_seed_not_the_order_of_the_json(tmp_path, photographs):
    run(tmp_path / "one", photographs, **COCO_SOURCE)
    edit(photographs, lambda content: (content["images"].reverse(), content["annotations"].reverse()))
    run(tmp_path / "two", photographs, **COCO_SOURCE)
    run(tmp_path / "three", photographs, **COCO_SOURCE | {"seed": 5})
    assert digest(tmp_path / "one") == digest(tmp_path / "two")
    assert Shards(tmp_path / "one", "train").keys != Shards(tmp_path / "three", "train").keys


def test_pycocotools_reads_the_validation_split_with_its_ids(tmp_path, photographs):
    run(tmp_path / "out", photographs, **COCO_SOURCE)
    written, original_coco = COCO(tmp_path / "out/validation/instances.json"), COCO(photographs / "instances.json")
    assert [c["name"] for c in written.loadCats(written.getCatIds())] == ["square"]
    assert len(written.imgs) == 3
    for number, annotation in written.anns.items():
        assert annotation["category_id"] == 7
        assert annotation["image_id"] == original_coco.anns[number]["image_id"]
        assert (written.annToMask(annotation) == original_coco.annToMask(original_coco.anns[number])).all()
    for image in written.imgs.values():
        with Image.open(tmp_path / "out/validation/images" / image["file_name"]) as opened:
            assert (opened.height, opened.width) == (image["height"], image["width"])


def test_rgb_jpegs_pass_through_untouched_and_grey_ones_become_rgb(tmp_path, photographs):
    run(tmp_path / "out", photographs, shard_images=100, **COCO_SOURCE)
    for split in SPLITS:
        with tarfile.open(tmp_path / f"out/{split}/00000.tar") as tar:
            for name in [name for name in tar.getnames() if name.endswith(".jpg")]:
                packed, original = tar.extractfile(name).read(), (photographs / "images" / name).read_bytes()
                assert (packed == original) == (name != "0003.jpg")
                with Image.open(io.BytesIO(packed)) as image:
                    assert image.mode == "RGB"


def test_a_second_json_gives_the_validation_split_and_keeps_its_images_from_the_others(tmp_path, photographs):
    content = json.loads((photographs / "instances.json").read_text())
    content["images"] = content["images"][:2]
    content["annotations"] = [square(1, 1), square(2, 2)]
    (photographs / "val.json").write_text(json.dumps(content))
    own = {"validation": {"val": {"annotations": "val.json", "images": "images"}}}
    metrics = run(tmp_path / "out", photographs, **COCO_SOURCE | own)
    keys = {split: set(Shards(tmp_path / "out", split).keys) for split in SPLITS}
    assert keys["validation"] == {"0001", "0002"}
    assert keys["train"] | keys["calibration"] == {f"{i:04d}" for i in range(3, 9)}
    assert metrics["left_out_images_kept_for_validation"] == 2


def test_a_plain_folder_has_images_and_no_masks(tmp_path, photographs):
    source = FILES | {"kind": "folder", "images": "."}
    metrics = run(tmp_path / "out", photographs / "images", **source)
    assert metrics["train_images"] == metrics["train_images_without_objects"] == 5
    assert all(sample.annotations == [] for sample in Shards(tmp_path / "out", "train"))


def test_sa1b_tars_keep_their_scores_and_points(tmp_path, renderer):
    run(tmp_path / "first", renderer, **PROCEDURAL | {"train": 6})
    out = tmp_path / "again"
    run(out, tmp_path / "first/train", **FILES | {"kind": "sa1b", "min_area_px": 1})
    before = {sample.key: sample for sample in Shards(tmp_path / "first", "train")}
    after = {sample.key: sample for split in SPLITS for sample in Shards(out, split)}
    assert before.keys() == after.keys()
    for key, sample in after.items():
        assert (sample.image == before[key].image).all()
        assert sample.annotations == before[key].annotations
    numbers = [a["id"] for a in json.loads((out / "validation/instances.json").read_text())["annotations"]]
    assert len(set(numbers)) == len(numbers)


def truncate(root):
    path = root / "images/0002.jpg"
    path.write_bytes(path.read_bytes()[:-200])


def test_a_sa1b_tar_cut_short_is_named(tmp_path, renderer):
    run(tmp_path / "first", renderer, **PROCEDURAL | {"train": 6})
    path = tmp_path / "first/train/00001.tar"
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(InputError, match=r"00001\.tar"):
        run(tmp_path / "out", tmp_path / "first/train", **FILES | {"kind": "sa1b"})


BAD = {
    "image missing": (lambda root: (root / "images/0002.jpg").unlink(), {}, r"0002\.jpg cannot be read"),
    "image truncated": (truncate, {}, r"0002\.jpg is damaged"),
    "no image": (lambda root: (root / "images/0002.jpg").write_text("<html>"), {}, "is not a readable image"),
    "other size": (
        lambda root: Image.new("RGB", (9, 9)).save(root / "images/0002.jpg"),
        {},
        r"0002\.jpg is 9 x 9 pixels .* say 20 x 30",
    ),
    "image not listed": (
        lambda root: edit(root, lambda c: c["images"].pop(0)),
        {},
        r"instances\.json: annotation 101 belongs to image 1, which",
    ),
    "bad polygon": (
        lambda root: edit(root, lambda c: c["annotations"][0].update(segmentation=[[1, 2, 3]])),
        {},
        r"instances\.json: annotation 101 of image 1: a polygon",
    ),
    "not json": (lambda root: (root / "instances.json").write_text("{"), {}, r"instances\.json is not JSON"),
    "too few": (lambda root: None, {"calibration_images": 5}, "has 8 usable images"),
    "no such folder": (lambda root: None, {"images": "nowhere"}, "nowhere is not a folder"),
    "an empty set": (
        lambda root: (root / "none.json").write_text('{"images": [], "annotations": []}'),
        {"validation": {"val": {"annotations": "none.json", "images": "images"}}},
        r"none\.json \(prepare\.source\.validation\.val\) has no image with masks",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_data_gets_one_line_that_names_the_file(tmp_path, photographs, case):
    spoil, change, message = BAD[case]
    spoil(photographs)
    with pytest.raises(InputError, match=message) as caught:
        run(tmp_path / "out", photographs, **COCO_SOURCE | change)
    assert "\n" not in str(caught.value)


def test_absent_data_is_named(tmp_path):
    with pytest.raises(InputError, match=r"nowhere does not exist: correct prepare\.data"):
        run(tmp_path / "out", tmp_path / "nowhere", **COCO_SOURCE)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (COCO_SOURCE | {"kind": "cocoa"}, "cocoa"),
        (COCO_SOURCE | {"sede": 1}, "unknown key 'source.coco.sede'"),
        (PROCEDURAL | {"train": "4"}, r"source\.procedural\.train"),
        (PROCEDURAL | {"train": 0}, r"source\.procedural\.train"),
        ({k: v for k, v in COCO_SOURCE.items() if k != "images"}, "'source.coco.images' is missing"),
    ],
)
def test_a_wrong_source_is_refused_by_its_key(tmp_path, source, message):
    with pytest.raises(InputError, match=message):
        run(tmp_path / "out", tmp_path, **source)


def sets(root, **names):
    """Two validation sets of the photographs: images 1 and 2, and image 3."""
    content = json.loads((root / "instances.json").read_text())
    for name, numbers in names.items():
        part = content | {"images": [i for i in content["images"] if i["id"] in numbers]}
        part["annotations"] = [a for a in content["annotations"] if a["image_id"] in numbers]
        (root / f"{name}.json").write_text(json.dumps(part))
    return {name: {"annotations": f"{name}.json", "images": "images"} for name in names}


@pytest.mark.parametrize(("leaderboard", "first"), [(None, "a"), ("b", "b")])
def test_the_leaderboards_set_is_chosen_by_name_not_by_order(tmp_path, photographs, leaderboard, first):
    named = sets(photographs, b=(3,), a=(1, 2))
    source = COCO_SOURCE | {"validation": named, "leaderboard": leaderboard}
    run(tmp_path / "out", photographs, **source)
    assert json.loads((tmp_path / "out/validation/set.json").read_text())["name"] == first
    other = {"a": "b", "b": "a"}[first]
    written = json.loads((tmp_path / f"out/validation_sets/{other}/instances.json").read_text())
    assert [image["id"] for image in written["images"]] == {"a": [1, 2], "b": [3]}[other]
    about = json.loads((tmp_path / f"out/validation_sets/{other}/set.json").read_text())
    assert about["source_digest"] == file_sha256(photographs / f"{other}.json")


@pytest.mark.parametrize("name", ["validation", "train", "click"])
def test_a_set_cannot_have_a_name_that_counts_or_metrics_have(tmp_path, photographs, name):
    with pytest.raises(InputError, match=f"'{name}' cannot be the name of a set"):
        run(tmp_path / "out", photographs, **COCO_SOURCE | {"validation": sets(photographs, **{name: (1,)})})


def test_a_set_outside_of_the_data_is_refused_since_dvc_would_not_watch_it(tmp_path, photographs):
    named = {"a": {"annotations": "../a.json", "images": "images"}}
    with pytest.raises(InputError, match=r"not in prepare\.data .*put or link it there"):
        run(tmp_path / "out", photographs, **COCO_SOURCE | {"validation": named})


@pytest.mark.parametrize("source", [COCO_SOURCE, FILES | {"kind": "folder", "images": "images"}])
def test_a_link_that_leads_out_of_the_folder_is_read_and_said(tmp_path, photographs, source, capsys):
    run(tmp_path / "plain", photographs, **source)
    assert "links to files" not in capsys.readouterr().err
    image = photographs / "images/0002.jpg"
    image.rename(tmp_path / "elsewhere.jpg")
    image.symlink_to(tmp_path / "elsewhere.jpg")
    run(tmp_path / "linked", photographs, **source)
    folder = photographs / "images"
    line = f"1 images of {folder} are links to files outside of it, first '0002.jpg'."
    assert line in " ".join(capsys.readouterr().err.split())
    assert digest(tmp_path / "linked") == digest(tmp_path / "plain")


def test_areas_and_boxes_that_make_no_sense_are_not_stated(tmp_path, photographs):
    edit(photographs, lambda c: c["annotations"][0].update(bbox=[], area="large"))
    metrics = run(tmp_path / "out", photographs, **COCO_SOURCE)
    assert metrics["train_images"] == 3
