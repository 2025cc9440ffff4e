"""Everything mode against segment-anything's own generator, on the bundled teacher's weights."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import Sam as PublishedSam
from segment_anything.utils.amg import build_point_grid, generate_crop_boxes

from pipeline.bench.everything import Counted, PublishedEncoder
from pipeline.build_engine import ENGINES, BuildEngineConfig
from pipeline.core.artifact import Card, Contents
from pipeline.core.errors import InputError
from pipeline.data.scenes import render
from pipeline.export.sam import DECODER, ENCODER, export_decoder, export_encoder
from pipeline.models import build
from pipeline.models.sam import load_weights
from pipeline.ops import masks
from pipeline.ops.geometry import masks_to_original, upscaling
from pipeline.runtime import EverythingSettings, Predictor, everything, load
from pipeline.runtime.everything.grid import coarse_points, crops, point_grid
from pipeline.runtime.everything.upscaling import Upscaling
from pipeline.teacher import BUNDLED

LAX = {"points_per_side": 6, "pred_iou_thresh": 0.4, "stability_score_thresh": 0.5, "stability_score_offset": 0.5}
CHANCE = {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "points_per_side": 2, "box_nms_thresh": 1.0}
KEYS = {"segmentation", "area", "bbox", "predicted_iou", "point_coords", "stability_score", "crop_box"}


@pytest.fixture(scope="module")
def teacher():
    return load_weights(build("bundled"), BUNDLED["bundled"] / "model.safetensors").eval()


@pytest.fixture(scope="module")
def predictor(teacher):
    return Predictor(load(teacher))


def scene(height=256, width=256, seed=7):
    return np.ascontiguousarray(render(np.random.default_rng(seed), max(height, width)).image[:height, :width])


def published(teacher, image, **chosen):
    whole = PublishedSam(PublishedEncoder(teacher), teacher.prompt_encoder, teacher.mask_decoder).eval()
    return SamAutomaticMaskGenerator(whole, **chosen).generate(image)


def assert_same(found, expected):
    """Equal records in equal order; where the decoders' last bits differ, a pixel in ten thousand may."""
    assert len(found) == len(expected) > 0
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.keys() == theirs.keys() == KEYS
        different = int((ours["segmentation"] ^ theirs["segmentation"]).sum())
        assert different <= 1e-4 * ours["segmentation"].size
        assert abs(ours["area"] - theirs["area"]) <= different
        assert ours["segmentation"].sum() == ours["area"]
        assert ours["bbox"] == theirs["bbox"] or different
        assert ours["crop_box"] == theirs["crop_box"]
        for key in ("predicted_iou", "point_coords", "stability_score"):
            assert np.allclose(ours[key], theirs[key], atol=1e-3), key


@pytest.mark.parametrize(
    ("size", "chosen"),
    [
        ((256, 256), {}),
        ((200, 320), {"min_mask_region_area": 40}),
        ((64, 40), {"min_mask_region_area": 40}),
        ((200, 320), {"crop_n_layers": 1, "points_per_side": 3}),
        ((256, 256), {"crop_n_layers": 1, "crop_n_points_downscale_factor": 3, "min_mask_region_area": 15}),
        ((90, 60), {"pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 0.9}),
    ],
)
def test_dense_records_are_segment_anythings(teacher, predictor, size, chosen):
    image = scene(*size)
    found = everything(predictor, image, "dense", EverythingSettings(**LAX | chosen))
    assert_same(found, published(teacher, image, **LAX | chosen))


def test_rle_and_arrays_are_the_same_masks(predictor):
    for mode in ("dense", "hierarchical"):
        arrays = everything(predictor, scene(), mode, EverythingSettings(**LAX))
        rles = everything(predictor, scene(), mode, EverythingSettings(**LAX, output_mode="coco_rle"))
        assert arrays
        for a, b in zip(arrays, rles, strict=True):
            assert a["segmentation"].dtype == bool
            assert np.array_equal(a.pop("segmentation"), masks.decode(b.pop("segmentation")))
            assert a == b


@pytest.mark.parametrize("mode", ["dense", "hierarchical"])
def test_how_points_are_batched_changes_no_mask(predictor, mode):
    one, other = (everything(predictor, scene(), mode, EverythingSettings(**LAX, points_per_batch=n)) for n in (5, 36))
    assert_same(one, other)


@pytest.mark.parametrize("mode", ["dense", "hierarchical"])
def test_two_calls_give_the_same_and_leave_the_predictor_as_it_was(predictor, mode):
    predictor.set_images([scene(32, 48), scene(48, 32)])
    predictor.select(1)
    features, asked = predictor.features.clone(), EverythingSettings(**LAX | {"points_per_side": 3}, crop_n_layers=1)
    image = scene()
    before, copied = image.copy(), asked.model_copy()
    first = everything(predictor, image, mode, asked)
    everything(predictor, scene(100, 40), mode, asked)  # another image in between leaves no trace
    second = everything(predictor, image, mode, asked)
    assert len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert np.array_equal(a.pop("segmentation"), b.pop("segmentation"))
        assert a == b
    assert np.array_equal(image, before)
    assert asked == copied
    assert torch.equal(predictor.features, features)
    assert predictor.original_size == (48, 32)


def test_the_second_round_asks_only_outside_of_what_the_first_is_sure_of(teacher):
    asked = EverythingSettings(**LAX | {"points_per_side": 8}, confident_logit=0.5, coarse_stride=2)
    counted = Counted(load(teacher))
    assert everything(Predictor(counted), scene(), "hierarchical", asked)
    assert 16 < counted.points < 64
    counted = Counted(load(teacher))
    everything(Predictor(counted), scene(), "hierarchical", asked.model_copy(update={"confident_logit": 1e9}))
    assert counted.points == 64


def test_with_nothing_sure_or_one_round_for_all_hierarchical_finds_the_dense_masks(predictor):
    dense = everything(predictor, scene(), "dense", EverythingSettings(**LAX))
    for chosen in ({"confident_logit": 1e9}, {"coarse_stride": 1}):
        found = everything(predictor, scene(), "hierarchical", EverythingSettings(**LAX, **chosen))
        assert_same(found, dense)


class Painter:
    """A segmenter that takes x and y for what they are: its masks are 3 x 3 cells around the point asked for."""

    image_size = input_size = 256
    embedding_size = 16

    def __init__(self):
        self.points = []

    def encode(self, images):
        return torch.zeros(len(images), 256, 16, 16)

    def decode(self, image_embedding, point_coords, point_labels, mask_input=None):
        self.points += point_coords[:, 0].tolist()
        logits = torch.full((len(point_coords), 4, 64, 64), -9.0)
        for i, (x, y) in enumerate((point_coords[:, 0] / 4).int().tolist()):
            logits[i, 1:, max(0, y - 1) : y + 2, max(0, x - 1) : x + 2] = 9.0
        return logits, torch.ones(len(point_coords), 4)


@given(st.integers(1, 400), st.integers(1, 400), st.integers(1, 6), st.integers(1, 4), st.integers(0, 1))
@settings(max_examples=20, deadline=None)
def test_every_point_lies_inside_the_image_and_is_asked_for_once(height, width, per_side, stride, layers):
    segmenter = Painter()
    image = np.zeros((height, width, 3), np.uint8)
    asked = EverythingSettings(
        points_per_side=per_side, coarse_stride=stride, crop_n_layers=layers, confident_logit=99.0
    )
    for record in everything(Predictor(segmenter), image, "hierarchical", asked):
        ((x, y),) = record["point_coords"]
        assert 0 < x < width
        assert 0 < y < height
        x0, y0, w, h = record["bbox"]
        assert x0 >= 0
        assert y0 >= 0
        assert x0 + w < width
        assert y0 + h < height
        assert masks.box(record["segmentation"]) == (x0, y0, x0 + w + 1, y0 + h + 1)
        assert record["segmentation"].shape == (height, width)
    frame = np.array(segmenter.points)
    assert (frame > 0).all()
    assert (frame <= 256).all()
    assert len(frame) == per_side**2 * len(crops((height, width), layers, asked.crop_overlap_ratio))


def test_x_is_x_and_y_is_y():
    """A mask in the left half keeps the second round out of the left half, not out of the upper one."""

    class LeftHalf(Painter):
        def decode(self, image_embedding, point_coords, point_labels, mask_input=None):
            logits, ious = super().decode(image_embedding, point_coords, point_labels)
            logits[:] = -9.0
            logits[:, 1:, :, :32] = 9.0
            return logits, ious

    segmenter = LeftHalf()
    everything(Predictor(segmenter), np.zeros((256, 256, 3), np.uint8), "hierarchical")
    second = np.array(segmenter.points[64:])
    assert len(second) == (32 * 32 - 64) // 2
    assert second[:, 0].min() > 128
    assert second[:, 1].min() < 10


@given(st.integers(1, 40), st.integers(1, 12))
def test_the_coarse_points_are_points_of_the_grid_spread_over_all_of_it(per_side, stride):
    chosen = coarse_points(per_side, stride).reshape(per_side, per_side)
    assert chosen.any()
    assert np.array_equal(chosen, chosen.T)
    line = np.flatnonzero(chosen.any(axis=0))
    assert (np.diff(line) == stride).all()
    assert line[0] < stride
    assert per_side - line[-1] <= stride


@given(st.integers(1, 30), st.integers(1, 999), st.integers(1, 999))
def test_grids_are_segment_anythings(per_side, height, width):
    assert np.allclose(point_grid(per_side, (height, width)), build_point_grid(per_side) * [width, height])


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(0, 3), st.floats(0, 0.9))
def test_crops_cover_the_image_and_are_segment_anythings_where_it_has_any_pixels(height, width, layers, overlap):
    found = crops((height, width), layers, overlap)
    theirs, layer = generate_crop_boxes((height, width), layers, overlap)
    expected = [[*box, i] for box, i in zip(theirs, layer, strict=True) if box[2] > box[0] and box[3] > box[1]]
    assert [list(dataclasses.astuple(crop)) for crop in found] == expected
    for i in range(layers + 1):
        assert min(c.x0 for c in found if c.layer == i) == 0
        assert max(c.x1 for c in found if c.layer == i) == width
        assert max(c.y1 for c in found if c.layer == i) == height
    assert all(min(crop.size) > 0 for crop in found)


class Frames(Painter):
    image_size, embedding_size = 64, 4


@given(st.integers(1, 90), st.integers(1, 90), st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_cut_to_their_regions_masks_are_what_upscaling_all_of_them_gives(height, width, seed):
    rng = np.random.default_rng(seed)
    size, offset = (height, width), float(rng.uniform(0, 1))
    logits = torch.from_numpy(rng.normal(rng.uniform(-3, 1), 1, (4, 16, 16))).float()
    whole = masks_to_original(logits[:, None], size, 64)[:, 0]
    rows, columns = upscaling(size, 64, 16)
    assert torch.allclose(rows @ logits @ columns.T, whole, atol=1e-5)
    ours = Upscaling(size, Frames())
    near = (whole.abs() < 1e-5).numpy()
    assert ((ours.masks(logits) == (whole > 0).numpy()) | near).all()
    if any(((whole - cutoff).abs() < 1e-5).any() for cutoff in (0, offset, -offset)):
        return  # a value on a cutoff may fall to either side
    stability, boxes, seen = ours.measure(logits, offset)
    for i, mask in enumerate((whole > 0).numpy()):
        assert bool(seen[i]) == mask.any()
        if mask.any():
            x0, y0, x1, y1 = masks.box(mask)
            assert boxes[i].tolist() == [x0, y0, x1 - 1, y1 - 1]
            expected = int((whole[i] > offset).sum()) / int((whole[i] > -offset).sum())
            assert float(stability[i]) == pytest.approx(expected, abs=1e-6)
        else:
            assert float(stability[i]) == 0.0


@pytest.mark.parametrize("mode", ["dense", "hierarchical"])
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 2)])
def test_images_of_few_pixels_and_extreme_shapes_have_records_that_fit_them(predictor, mode, size):
    for chosen in ({"crop_n_layers": 1}, {"min_mask_region_area": 3}):
        for record in everything(
            predictor, scene(300, 700)[: size[0], : size[1]], mode, EverythingSettings(**CHANCE | chosen)
        ):
            assert record["segmentation"].shape == size
            assert record["area"] > 0
            assert math.isfinite(record["stability_score"])


@pytest.mark.parametrize("mode", ["dense", "hierarchical"])
@pytest.mark.parametrize("chosen", [{"pred_iou_thresh": 1.0}, {"stability_score_thresh": 1.0}])
def test_where_no_mask_passes_there_are_no_records(predictor, mode, chosen):
    for more in ({}, {"crop_n_layers": 1, "min_mask_region_area": 10}):
        asked = EverythingSettings(points_per_side=2, stability_score_offset=3.0, **chosen, **more)
        assert everything(predictor, np.zeros((40, 60, 3), np.uint8), mode, asked) == []


@pytest.mark.parametrize(
    ("chosen", "says"),
    [
        ({"points_per_side": 0}, "points_per_side is 0: Input should be greater than or equal to 1"),
        ({"points_per_batch": 0}, "points_per_batch is 0: "),
        ({"pred_iou_thresh": 1.1}, "pred_iou_thresh is 1.1: Input should be less than or equal to 1"),
        ({"pred_iou_thresh": math.nan}, "pred_iou_thresh is nan: Input should be a finite number"),
        ({"stability_score_thresh": -0.1}, "stability_score_thresh is -0.1: "),
        ({"stability_score_offset": -1.0}, "stability_score_offset is -1.0: "),
        ({"box_nms_thresh": 2.0}, "box_nms_thresh is 2.0: "),
        ({"crop_nms_thresh": -1.0}, "crop_nms_thresh is -1.0: "),
        ({"crop_n_layers": -1}, "crop_n_layers is -1: "),
        ({"crop_overlap_ratio": 1.0}, "crop_overlap_ratio is 1.0: Input should be less than 1"),
        ({"crop_n_points_downscale_factor": 0}, "crop_n_points_downscale_factor is 0: "),
        ({"min_mask_region_area": -1}, "min_mask_region_area is -1: "),
        ({"output_mode": "uncompressed"}, "output_mode is 'uncompressed': Input should be 'binary_mask' or 'coco_rle'"),
        ({"coarse_stride": 0}, "coarse_stride is 0: "),
        ({"confident_logit": 0.0}, "confident_logit is 0.0: Input should be greater than 0"),
    ],
)
def test_settings_out_of_range_are_refused(chosen, says):
    with pytest.raises(InputError, match=says):
        EverythingSettings(**chosen)


def test_an_unknown_mode_and_what_is_no_image_are_refused(predictor):
    with pytest.raises(InputError, match="mode must be one of hierarchical, dense, not 'sparse'"):
        everything(predictor, scene(), "sparse")
    with pytest.raises(InputError, match="an image must have pixels"):
        everything(predictor, np.zeros((0, 4, 3), np.uint8))


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_any_runtime_finds_the_same(tmp_path: Path, teacher, predictor, engine):
    (tmp_path / "onnx").mkdir()
    export_encoder(teacher, tmp_path / "onnx" / ENCODER, opset=18, tolerance=1e-2)
    export_decoder(teacher, tmp_path / "onnx" / DECODER, opset=18, tolerance=1e-2)
    config = BuildEngineConfig(
        engine=engine,
        inference_precision="f32",
        threads=1,
        images=1,
        min_cosine=-1.0,
        min_mask_agreement=0.0,
        tensorrt=None,
    )
    out = tmp_path / "engine"
    out.mkdir()
    ENGINES[engine](config, tmp_path / "onnx", out)
    sizes = {"image_size": 256, "input_size": 256, "embedding_size": 16}
    Card.seal(out, Contents(kind="engine", model="bundled", precision="fp32", load=sizes | {"engine": engine}), {})
    engine_predictor = Predictor(load(out, threads=1))
    for mode in ("dense", "hierarchical"):
        asked = EverythingSettings(**LAX, confident_logit=1.0)
        assert_same(everything(engine_predictor, scene(), mode, asked), everything(predictor, scene(), mode, asked))


def test_matrices_are_copied_to_a_device_once_for_an_image(monkeypatch):
    ours, copies = Upscaling((40, 60), Frames()), []
    logits = torch.randn(5, 16, 16) + 1
    real = torch.Tensor.to

    def to(tensor, *arguments, **named):
        copies.append(tensor.shape)
        return real(tensor, *arguments, **named)

    monkeypatch.setattr(torch.Tensor, "to", to)
    for _ in range(3):
        list(ours.regions(logits, 0.0))
        ours._on(torch.device("meta"))
    assert [shape[0] for shape in copies] == [40, 60]


@pytest.mark.parametrize(("chosen", "expected"), [(None, {"cpu": 32, "cuda": 64}), (5, {"cpu": 5, "cuda": 5})])
def test_a_gpu_decodes_more_points_at_once(chosen, expected):
    settings = EverythingSettings(points_per_batch=chosen)
    assert {device: settings.points_at_once(device) for device in expected} == expected
