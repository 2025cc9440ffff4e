import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools.coco import COCO

from pipeline.core.errors import InputError
from pipeline.data import coco
from pipeline.ops import masks

SQUARE = [[2.0, 2.0, 8.0, 2.0, 8.0, 8.0, 2.0, 8.0]]


def content(**changes):
    base = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 20, "width": 30}],
        "annotations": [{"id": 5, "image_id": 1, "category_id": 3, "segmentation": SQUARE, "iscrowd": 0}],
        "categories": [{"id": 3, "name": "cat"}],
    }
    return base | changes


def written(directory, value):
    path = directory / "instances.json"
    path.write_text(value if isinstance(value, str) else json.dumps(value))
    return path


def annotation(**changes):
    return content()["annotations"][0] | changes


def image(**changes):
    return content()["images"][0] | changes


@settings(max_examples=30, deadline=None)
@given(
    st.lists(st.lists(st.tuples(st.floats(-5, 35), st.floats(-5, 25)), min_size=3, max_size=8), min_size=1, max_size=3)
)
def test_polygons_become_the_masks_that_pycocotools_makes(tmp_path_factory, polygons):
    path = written(
        tmp_path_factory.mktemp("coco"),
        content(annotations=[annotation(segmentation=[[v for point in p for v in point] for p in polygons])]),
    )
    theirs = COCO(path)
    expected = theirs.annToMask(theirs.anns[5]).astype(bool)
    photograph = coco.read(path, 1).photographs[0]
    if not expected.any():
        assert photograph.instances == []
    else:
        assert (masks.decode(photograph.instances[0].rle) == expected).all()


def test_the_three_forms_of_one_mask_are_read_alike(tmp_path):
    mask = np.zeros((20, 30), dtype=bool)
    mask[3:9, 4:20] = True
    compressed = masks.encode(mask)
    flat = mask.ravel(order="F").astype(int)
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *edges, flat.size]).tolist()
    forms = [[[4, 3, 20, 3, 20, 9, 4, 9]], {"size": [20, 30], "counts": runs}, compressed]
    value = content(annotations=[annotation(id=i, segmentation=form) for i, form in enumerate(forms)])
    found = coco.read(written(tmp_path, value), 1).photographs[0].instances
    assert [(masks.decode(instance.rle) == mask).all() for instance in found] == [True, True, True]


def test_crowds_and_tiny_masks_are_left_out_and_counted(tmp_path):
    annotations = [
        annotation(id=1),
        annotation(id=2, iscrowd=1, segmentation={"size": [20, 30], "counts": [600]}),
        annotation(id=3, segmentation=[[0, 0, 2, 0, 2, 2, 0, 2]]),
    ]
    found = coco.read(written(tmp_path, content(annotations=annotations)), 5)
    assert (found.crowd, found.tiny) == (1, 1)
    assert [(instance.id, instance.category_id) for instance in found.photographs[0].instances] == [(1, 3)]


def test_lvis_without_file_name_and_iscrowd_is_read(tmp_path):
    value = content(images=[{"id": 1, "height": 20, "width": 30, "coco_url": "http://host/val2017/000001.jpg"}])
    del value["annotations"][0]["iscrowd"]
    photograph = coco.read(written(tmp_path, value), 1).photographs[0]
    assert photograph.file_name == "val2017/000001.jpg"
    assert len(photograph.instances) == 1


def test_a_json_without_categories_gets_one(tmp_path):
    value = content(categories=[])
    assert [c["id"] for c in coco.read(written(tmp_path, value), 1).categories] == [1, 3]


MALFORMED = {
    "not json": ("{]", "is not JSON"),
    "a list": ([], r"instances\.json: the top level: .*Give annotations in COCO format"),
    "no images": ({"annotations": []}, "images: Field required"),
    "no masks": (content(annotations=[{"id": 1, "image_id": 1}]), r"annotations\.0\.segmentation: Field required"),
    "id as text": (content(images=[image(id="1")]), r"images\.0\.id"),
    "no height": (content(images=[image(height=0)]), r"images\.0\.height"),
    "no name": (content(images=[image(file_name=None)]), "image 1 has neither file_name nor coco_url"),
    "name outside": (content(images=[image(file_name="../a.jpg")]), "must lie inside the image folder"),
    "image absent": (content(annotations=[annotation(image_id=9)]), "annotation 5 belongs to image 9, which"),
    "image twice": (content(images=[image(), image(file_name="b.jpg")]), "image id 1 occurs 2 times"),
    "annotation twice": (content(annotations=[annotation(), annotation()]), "annotation id 5 occurs 2 times"),
    "file twice": (content(images=[image(), image(id=2)]), r"file_name 'a\.jpg' occurs 2 times"),
    "unknown category": (content(annotations=[annotation(category_id=8)]), "category 8, which is not among"),
    "two corners": (
        content(annotations=[annotation(segmentation=[[1, 1, 2, 2]])]),
        "annotation 5 of image 1: a polygon",
    ),
    "odd polygon": (content(annotations=[annotation(segmentation=[[1, 1, 2, 2, 3, 3, 4]])]), "annotation 5 .*polygon"),
    "words": (content(annotations=[annotation(segmentation=[["a"] * 6])]), "annotation 5 .*polygon"),
    "nothing": (content(annotations=[annotation(segmentation=[])]), "annotation 5 .*segmentation"),
    "rle of other size": (
        content(annotations=[annotation(segmentation={"size": [30, 20], "counts": [600]})]),
        "annotation 5 .*RLE's size",
    ),
    "rle too short": (
        content(annotations=[annotation(segmentation={"size": [20, 30], "counts": [10, 20]})]),
        "annotation 5 .*sum to 600",
    ),
    "rle of noise": (
        content(annotations=[annotation(segmentation={"size": [20, 30], "counts": "~~~~"})]),
        "annotation 5 .*do not describe",
    ),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_a_malformed_json_is_refused_naming_file_and_record(tmp_path, case):
    value, said = MALFORMED[case]
    with pytest.raises(InputError, match=said) as caught:
        coco.read(written(tmp_path, value), 1)
    assert "instances.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_json_is_named(tmp_path):
    with pytest.raises(InputError, match=r"none\.json cannot be read"):
        coco.read(tmp_path / "none.json", 1)


@pytest.mark.parametrize(
    "name", ["a\0.jpg", "../a.jpg", "/etc/a.jpg", "a/../../b.jpg", "..\\b.jpg", "a" * 300, "a/" * 2000, "."], ids=len
)
def test_a_file_name_that_leads_out_of_the_folder_or_that_no_file_can_have_is_refused(tmp_path, name):
    path = tmp_path / "instances.json"
    images = [{"id": 1, "file_name": name, "height": 2, "width": 2}]
    path.write_text(json.dumps({"images": images, "annotations": []}))
    with pytest.raises(InputError, match="must lie inside the image folder") as refused:
        coco.read(path, 1)
    assert "\0" not in str(refused.value)
    assert "\n" not in str(refused.value)
