import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pipeline.core.artifact import Card, Contents, write_json
from pipeline.core.errors import InputError
from pipeline.evaluate.average_precision.recall import average_recall
from pipeline.evaluate.everything import EverythingConfig, best_ious, evaluate_everything
from pipeline.evaluate.validation import ValidationSet
from pipeline.ops import masks
from pipeline.ops.metrics import iou
from pipeline.runtime import EverythingSettings, Predictor

CONFIG = EverythingConfig(
    images=2,
    pictures=1,
    points_per_side=4,
    points_per_batch=5,
    pred_iou_thresh=0.5,
    stability_score_thresh=0.5,
    stability_score_offset=1.0,
    box_nms_thresh=0.7,
    crop_n_layers=0,
    coarse_stride=2,
    confident_logit=5.0,
)


class Quarters:
    """A segmenter whose mask is the quarter of the frame that a point lies in."""

    image_size = input_size = 256
    embedding_size = 16

    def encode(self, images):
        return torch.zeros(len(images), 256, 16, 16)

    def decode(self, image_embedding, point_coords, point_labels, mask_input=None):
        logits = torch.full((len(point_coords), 4, 64, 64), -9.0)
        for i, (x, y) in enumerate((point_coords[:, 0] // 128).int().tolist()):
            logits[i, 1, 32 * y : 32 * y + 32, 32 * x : 32 * x + 32] = 9.0
        return logits, torch.tensor([0.0, 0.9, 0.1, 0.1]).repeat(len(point_coords), 1)


@pytest.fixture
def dataset(tmp_path):
    """Images of 64 x 64: one quarter to be found, nothing, half a quarter and a quarter, one that is not asked for."""
    directory = tmp_path / "prepare"
    (directory / "validation" / "images").mkdir(parents=True)
    listed, annotations = [], []
    for number, boxes in enumerate(
        [[(0, 0, 32, 32)], [], [(32, 32, 64, 48), (0, 32, 32, 64)], [(1, 1, 2, 2)]], start=1
    ):
        Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(directory / "validation" / "images" / f"{number}.png")
        listed.append({"id": number, "file_name": f"{number}.png", "height": 64, "width": 64})
        for x0, y0, x1, y1 in boxes:
            mask = np.zeros((64, 64), bool)
            mask[y0:y1, x0:x1] = True
            annotations.append(
                {"id": len(annotations) + 1, "image_id": number, "segmentation": masks.encode(mask), "iscrowd": 0}
                | {"category_id": 1, "bbox": [x0, y0, x1 - x0, y1 - y0], "area": int(mask.sum())}
            )
    content = {"images": listed, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}
    write_json(directory / "validation" / "instances.json", content)
    Card.seal(directory, Contents(kind="dataset"), {})
    return directory


def test_both_modes_are_measured_on_the_first_images_that_hold_anything(dataset):
    arguments = (
        Predictor(Quarters()),
        ValidationSet(dataset / "validation"),
        ValidationSet(dataset / "validation").photographs(),
        CONFIG,
    )
    metrics, pictures = evaluate_everything(*arguments, timed=False)
    assert metrics["everything_miou"] == 1.0
    for mode in ("dense", "hierarchical"):
        assert metrics[f"everything_{mode}_masks"] == 4
        assert metrics[f"everything_{mode}_miou"] == pytest.approx((1 + 0.5 + 1) / 3)
        # two are found at all ten thresholds, the half quarter at 0.50 alone
        assert metrics[f"everything_{mode}_ar100"] == pytest.approx((10 + 10 + 1) / 30)
        assert metrics[f"everything_{mode}_ar1000"] == metrics[f"everything_{mode}_ar100"]
        assert f"everything_{mode}_s" not in metrics
    (picture,) = pictures["images"]
    assert (picture["image_id"], picture["file_name"]) == (1, "1.png")
    assert {mode: len(found) for mode, found in picture["modes"].items()} == {"hierarchical": 4, "dense": 4}
    assert picture["modes"]["dense"][0].keys() == {"segmentation", "area", "predicted_iou"}
    again = evaluate_everything(*arguments, timed=True)[0]
    assert again.keys() - metrics.keys() == {"everything_dense_s", "everything_hierarchical_s"}
    assert {key: again[key] for key in metrics} == metrics


def test_a_model_that_finds_nothing_has_zeros_and_no_agreement(dataset):
    strict = CONFIG.model_copy(update={"pred_iou_thresh": 0.95})
    metrics, _ = evaluate_everything(
        Predictor(Quarters()),
        ValidationSet(dataset / "validation"),
        ValidationSet(dataset / "validation").photographs(),
        strict,
        timed=False,
    )
    assert "everything_miou" not in metrics
    assert set(metrics.values()) == {0.0}


def test_config_and_settings_are_the_same_values_and_have_the_same_bounds():
    settings = CONFIG.settings().model_dump()
    assert settings["output_mode"] == "coco_rle"
    assert all(settings[key] == value for key, value in CONFIG if key not in ("images", "pictures"))
    for key, value in (
        ("points_per_side", 0),
        ("pred_iou_thresh", 1.5),
        ("coarse_stride", 0),
        ("confident_logit", 0.0),
    ):
        with pytest.raises(ValueError, match=key):
            EverythingConfig.model_validate(CONFIG.model_dump() | {key: value})
        with pytest.raises(InputError, match=key):
            EverythingSettings(**settings | {key: value})


_masks = st.lists(st.binary(min_size=12, max_size=12), max_size=6)


def _arrays(drawn):
    return [np.unpackbits(np.frombuffer(b, np.uint8)).reshape(8, 12).astype(bool) for b in drawn]


@given(_masks, _masks)
def test_the_best_iou_of_a_mask_is_the_highest_of_all_pairs(found, wanted):
    a, b = _arrays(found), _arrays(wanted)
    values = best_ious([masks.encode(m) for m in a], [masks.encode(m) for m in b])
    assert values == pytest.approx([max((iou(x, y) for x in a), default=0.0) for y in b])


@given(st.lists(st.tuples(_masks, _masks), min_size=1, max_size=4), st.randoms())
def test_average_recall_is_that_of_pycocotools(images, random):
    truths = [[masks.encode(m) for m in _arrays(t) if m.any()] for t, _ in images]
    found = [[(masks.encode(m), random.random()) for m in _arrays(f)] for _, f in images]
    if not any(truths):
        with pytest.raises(ValueError, match="at least one mask"):
            average_recall([(8, 12)] * len(images), truths, found)
        return
    ours = average_recall([(8, 12)] * len(images), truths, found)
    assert ours == pytest.approx(_pycocotools(truths, found))


def _pycocotools(truths, found):
    listed = [{"id": i, "height": 8, "width": 12} for i in range(1, len(truths) + 1)]

    def indexed(masks_of_images):
        coco = COCO()
        flat = [(i, *entry) for i, entries in enumerate(masks_of_images, start=1) for entry in entries]
        coco.dataset = {"images": listed, "categories": [{"id": 1}], "annotations": [
            {"id": k, "image_id": i, "category_id": 1, "iscrowd": 0, "segmentation": rle, "area": masks.area(rle)}
            | {"score": score} for k, (i, rle, score) in enumerate(flat, start=1)
        ]}  # fmt: skip
        coco.createIndex()
        return coco

    if not any(found):
        return {100: 0.0, 1000: 0.0}
    scorer = COCOeval(indexed([[(rle, 1.0) for rle in rles] for rles in truths]), indexed(found), "segm")
    scorer.params.useCats, scorer.params.maxDets = 0, [1, 100, 1000]
    scorer.evaluate()
    scorer.accumulate()
    return {n: float(scorer.eval["recall"][:, 0, 0, i].mean()) for i, n in ((1, 100), (2, 1000))}
