"""Our predictor against segment-anything's own, on the same weights."""

from functools import partial

import numpy as np
import pytest
import torch
from segment_anything import SamPredictor
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

from pipeline.core.errors import InputError
from pipeline.models.sam import assemble
from pipeline.runtime import Predictor, load
from pipeline.runtime import predictor as predictor_module

SIDE, GRID = 256, 16


@pytest.fixture(scope="module")
def published():
    with torch.random.fork_rng():
        torch.manual_seed(3)
        encoder = ImageEncoderViT(
            depth=1, embed_dim=32, img_size=SIDE, mlp_ratio=2, norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            num_heads=2, patch_size=16, qkv_bias=True, use_rel_pos=True, global_attn_indexes=[0], window_size=0,
            out_chans=256,
        )  # fmt: skip
        return Sam(
            encoder,
            PromptEncoder(
                embed_dim=256, image_embedding_size=(GRID, GRID), input_image_size=(SIDE, SIDE), mask_in_chans=16
            ),
            MaskDecoder(
                num_multimask_outputs=3,
                transformer=TwoWayTransformer(depth=2, embedding_dim=256, mlp_dim=2048, num_heads=8),
                transformer_dim=256,
                iou_head_depth=3,
                iou_head_hidden_dim=256,
            ),
        ).eval()


@pytest.fixture(scope="module")
def ours(published):
    sam = assemble(published.image_encoder, image_size=SIDE, input_size=SIDE, embedding_size=GRID)
    sam.prompt_encoder.load_state_dict(published.prompt_encoder.state_dict())
    sam.mask_decoder.load_state_dict(published.mask_decoder.state_dict())
    return Predictor(load(sam))


def picture(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def prompts(height, width):
    point = np.array([[0.3 * width, 0.6 * height]])
    points = np.array([[0.1, 0.2], [0.8, 0.4], [0.5, 0.5]]) * [width, height]
    box = np.array([0.1 * width, 0.2 * height, 0.9 * width, 0.7 * height])
    mask = np.random.default_rng(1).normal(size=(1, 4 * GRID, 4 * GRID)).astype(np.float32)
    return {
        "point": {"point_coords": point, "point_labels": np.array([1])},
        "points": {"point_coords": points, "point_labels": np.array([1, 0, 1])},
        "ignored": {"point_coords": points, "point_labels": np.array([1, -1, 0])},
        "box": {"box": box},
        "notebook_box": {"box": box[None]},
        "box_points": {"point_coords": points, "point_labels": np.array([0, 1, 1]), "box": box},
        "mask": {"mask_input": mask},
        "point_mask": {"point_coords": point, "point_labels": np.array([0]), "mask_input": mask},
        "box_mask": {"box": box, "mask_input": mask},
        "nothing": {},
    }


@pytest.mark.parametrize("size", [(64, 80), (256, 256), (1, 1), (1, 300), (333, 640)])
@pytest.mark.parametrize("multimask", [True, False])
def test_results_are_segment_anythings(published, ours, size, multimask):
    image, theirs = picture(*size), SamPredictor(published)
    if size == (1, 300):  # segment-anything scales one row of 300 to one row of 256 as well
        assert theirs.transform.get_preprocess_shape(*size, SIDE) == (1, SIDE)
    theirs.set_image(image)
    ours.set_image(image)
    assert torch.allclose(ours.features, theirs.features, atol=1e-4)
    assert (ours.original_size, ours.input_size, ours.is_image_set) == (size, theirs.input_size, True)
    for name, prompt in prompts(*size).items():
        found = ours.predict(**prompt, multimask_output=multimask, return_logits=True)
        expected = theirs.predict(**prompt, multimask_output=multimask, return_logits=True)
        for a, b in zip(found, expected, strict=True):
            assert a.shape == b.shape, name
            assert a.dtype == b.dtype, name
            assert np.abs(a - b).max() < 1e-4, name
        masks = ours.predict(**prompt, multimask_output=multimask)[0]
        assert masks.dtype == bool
        assert np.array_equal(masks, found[0] > 0)


def test_bgr_is_rgb_turned_around(ours):
    image = picture(40, 60)
    ours.set_image(image)
    features = ours.features
    ours.set_image(image[..., ::-1], image_format="BGR")
    assert torch.equal(ours.features, features)


def test_images_of_different_sizes_in_one_batch_are_each_as_alone(ours):
    images = [picture(40, 60, 1), picture(300, 20, 2), picture(1, 1, 3)]
    ours.set_images(images)
    batch = []
    for i in range(3):
        ours.select(i)
        batch.append((ours.original_size, ours.predict(box=np.array([0, 0, 1, 1]), return_logits=True)))
    for image, (size, found) in zip(images, batch, strict=True):
        ours.set_image(image)
        alone = ours.predict(box=np.array([0, 0, 1, 1]), return_logits=True)
        assert size == image.shape[:2]
        assert all(np.abs(a - b).max() < 1e-4 for a, b in zip(found, alone, strict=True))


@pytest.mark.parametrize("at_once", [1, 3, 16])
def test_a_batch_of_prompts_is_its_prompts_one_by_one_however_it_is_cut(ours, monkeypatch, at_once):
    monkeypatch.setattr(predictor_module, "PROMPTS_AT_ONCE", at_once)
    monkeypatch.setattr(predictor_module, "UPSCALED_AT_ONCE", at_once * SIDE * SIDE)
    ours.set_image(picture(50, 70))
    rng = np.random.default_rng(0)
    coords, labels = rng.uniform(0, 50, (5, 2, 2)), rng.integers(0, 2, (5, 2))
    boxes = np.sort(rng.uniform(0, 50, (5, 2, 2)), axis=1).reshape(5, 4)
    masks = rng.normal(size=(5, 1, 4 * GRID, 4 * GRID))
    found = ours.predict(coords, labels, boxes, masks, return_logits=True)
    assert found.masks.shape == (5, 3, 50, 70)
    for i in range(5):
        alone = ours.predict(coords[i], labels[i], boxes[i], masks[i], return_logits=True)
        assert all(np.abs(a[i] - b).max() < 1e-4 for a, b in zip(found, alone, strict=True))


def test_a_batch_of_one_and_of_none_keeps_its_leading_axis(ours):
    ours.set_image(picture(20, 30))
    one, none = ours.predict_batch(boxes=np.array([[1, 2, 9, 9]])), ours.predict_batch(boxes=np.zeros((0, 4)))
    assert one.masks.shape == (1, 3, 20, 30)
    assert (none.masks.shape, none.iou_predictions.shape) == ((0, 3, 20, 30), (0, 3))
    assert np.array_equal(one.masks[0], ours.predict(box=np.array([1, 2, 9, 9])).masks)


def test_low_res_masks_are_good_as_mask_input(ours):
    ours.set_image(picture(20, 30))
    first = ours.predict(box=np.array([1, 2, 9, 9]), multimask_output=False)
    second = ours.predict(box=np.array([1, 2, 9, 9]), mask_input=first.low_res_masks, multimask_output=False)
    assert not np.array_equal(first.low_res_masks, second.low_res_masks)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        ({"point_coords": np.zeros((1, 2))}, "go together"),
        ({"point_labels": np.zeros(1)}, "go together"),
        ({"point_coords": np.zeros((2, 2)), "point_labels": np.zeros(1)}, r"\(2, 2\) and \(1,\)"),
        ({"point_coords": np.zeros((2, 3)), "point_labels": np.zeros(2)}, r"\(2, 3\)"),
        ({"point_coords": np.zeros((1, 2)), "point_labels": np.array([7])}, "not 7"),
        ({"point_coords": np.array([[np.nan, 1]]), "point_labels": np.array([1])}, "finite"),
        ({"box": np.zeros(3)}, r"\(3,\)"),
        ({"box": np.array([5, 5, 1, 9])}, "ends before it begins"),
        ({"box": "left"}, "array of numbers"),
        ({"mask_input": np.zeros((1, 8, 8))}, r"\(1, 64, 64\)"),
        (
            {"box": np.zeros((2, 4)), "point_coords": np.zeros((3, 1, 2)), "point_labels": np.zeros((3, 1))},
            "same number of prompts",
        ),
    ],
)
def test_a_wrong_prompt_is_refused_in_words(ours, arguments, says):
    ours.set_image(picture(20, 30))
    with pytest.raises(InputError, match=says):
        ours.predict(**arguments)


@pytest.mark.parametrize(
    "image",
    [np.zeros((4, 4), np.uint8), np.zeros((4, 4, 4), np.uint8), np.zeros((4, 4, 3)), np.zeros((0, 4, 3), np.uint8)],
)
def test_what_is_no_image_is_refused_and_the_last_image_stays(ours, image):
    ours.set_image(picture(20, 30))
    with pytest.raises(InputError, match="image"):
        ours.set_image(image)
    assert ours.original_size == (20, 30)


def test_predicting_without_an_image_says_what_to_call(ours):
    ours.reset_image()
    assert (ours.is_image_set, ours.features) == (False, None)
    with pytest.raises(RuntimeError, match="set_image"):
        ours.predict(box=np.array([0, 0, 1, 1]))


def test_unknown_format_and_index_are_refused(ours):
    with pytest.raises(InputError, match="RGB, BGR, not 'HSV'"):
        ours.set_image(picture(2, 2), image_format="HSV")
    with pytest.raises(InputError, match="at least one"):
        ours.set_images([])
    ours.set_image(picture(2, 2))
    with pytest.raises(InputError, match="no image 1"):
        ours.select(1)


@pytest.mark.parametrize(("device", "expected"), [("cpu", [16, 16, 16, 16, 6]), ("meta", [64, 6])])
def test_a_gpu_decodes_more_prompts_at_once(device, expected):
    class Counting:
        image_size = input_size = SIDE
        embedding_size = GRID
        sizes = []

        def encode(self, images):
            return torch.zeros(len(images), 256, GRID, GRID, device=device)

        def decode(self, embedding, coords, labels, mask_input=None):
            self.sizes.append(len(coords))
            return torch.zeros(len(coords), 4, 4 * GRID, 4 * GRID), torch.zeros(len(coords), 4)

    predictor = Predictor(Counting())
    predictor.set_image(picture(20, 30))
    predictor.predict_batch(boxes=np.tile([1.0, 2, 9, 9], (70, 1)))
    assert Counting.sizes == expected
