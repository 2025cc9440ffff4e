import numpy as np
import pytest
import torch

from pipeline.export.sam import export_decoder
from pipeline.models import build
from pipeline.models.decoder import decode
from pipeline.models.dense_prompts import DensePromptEncoder, prompt_maps
from pipeline.train_teacher.windows import Window, positioned

BOX, CLICK, NEGATIVE, PADDING = ((2.0, 3.0), (1.0, -1.0), (0.0, -1.0), (-1.0, -1.0))
PIXELS = torch.arange(64) * 4.0 + 2


def maps(coords, labels):
    return prompt_maps(torch.tensor([coords]), torch.tensor([labels]), PIXELS, PIXELS)[0]


def sam(seed=0):
    """A model of which the maps' last layer is not zero, as it is initially."""
    built = build("bundled_v2", seed=seed).eval()
    torch.nn.init.normal_(built.prompt_encoder.maps_embedding[2].weight, generator=torch.Generator().manual_seed(1))
    return built


def test_a_box_is_drawn_as_its_inside_and_its_ellipse():
    drawn = maps([[40.0, 80.0], [120.0, 200.0]], BOX)
    inside = torch.zeros(64, 64)
    inside[20:50, 10:30] = 1
    assert torch.equal(drawn[6], inside)
    assert torch.equal(drawn[5], torch.ones(64, 64))
    y, x = (torch.from_numpy(grid).float() * 4 + 2 for grid in np.mgrid[:64, :64])
    ellipse = ((x - 80) / 40) ** 2 + ((y - 140) / 60) ** 2 < 1
    assert torch.equal(drawn[2] > 0, ellipse)
    assert not drawn[7:].any()


@pytest.mark.parametrize(("labels", "first"), [(CLICK, 7), (NEGATIVE, 10)])
def test_a_click_is_drawn_as_bells_of_three_sizes_at_its_place(labels, first):
    drawn = maps([[102.0, 54.0], [0.0, 0.0]], labels)
    bells = drawn[first : first + 3]
    assert torch.equal(bells.flatten(1).argmax(dim=1), torch.full((3,), 13 * 64 + 25))
    assert torch.equal(bells.amax(dim=(1, 2)), torch.ones(3))
    areas = (bells > 0.5).sum(dim=(1, 2))
    assert areas[0] < areas[1] < areas[2]
    assert drawn.abs().sum() == bells.sum()


def test_padding_is_not_drawn():
    assert not maps([[9.0, 9.0], [30.0, 60.0]], PADDING).any()


@torch.inference_mode()
def test_the_maps_of_a_window_are_those_of_the_frame():
    model = sam()
    encoder, coords, labels = model.prompt_encoder, torch.tensor([[[99.0, 70.0], [0, 0]]]), torch.tensor([CLICK])
    whole = encoder.embed_maps(coords, labels).unflatten(1, (32, 32))
    with positioned(model, Window(3, 5, 16)):
        part = encoder.embed_maps(coords, labels).unflatten(1, (16, 16))
    torch.testing.assert_close(part, whole[:, 5:21, 3:19])
    torch.testing.assert_close(encoder.embed_maps(coords, labels).unflatten(1, (32, 32)), whole)


@torch.inference_mode()
def test_masks_follow_each_prompt_of_each_image():
    model, generator = sam(), torch.Generator().manual_seed(2)
    images = torch.randn(2, 256, 32, 32, generator=generator)
    coords = (torch.rand(2, 3, 2, 2, generator=generator) * 512).sort(dim=2).values
    labels = torch.tensor([[BOX, CLICK, NEGATIVE]] * 2)
    together, _ = decode(model, images, coords, labels)
    for image in range(2):
        for prompt in range(3):
            chosen = slice(image, image + 1), slice(prompt, prompt + 1)
            alone, _ = decode(model, images[chosen[:1]], coords[chosen], labels[chosen])
            torch.testing.assert_close(alone, together[chosen], rtol=1e-3, atol=1e-3)


def test_the_exported_decoder_draws_prompts(tmp_path):
    metrics = export_decoder(sam(), tmp_path / "decoder.onnx", opset=18, tolerance=2e-3)
    assert metrics["decoder_max_difference"] <= 2e-3


@pytest.mark.parametrize("student", ["efficientvit_sam_nano", "tinysam_nano", "sam_lightening_nano", "edge_sam_nano"])
@torch.inference_mode()
def test_nano_students_take_the_frame_and_the_prompt_encoder_of_their_teacher(student):
    built, teacher = build(student, {"teacher": "bundled_v2"}).eval(), build("bundled_v2")
    assert isinstance(built.prompt_encoder, DensePromptEncoder)
    built.prompt_encoder.load_state_dict(teacher.prompt_encoder.state_dict())
    embedding = built.image_encoder(torch.zeros(1, 3, built.input_size, built.input_size))
    assert embedding.shape == (1, 256, teacher.embedding_size, teacher.embedding_size)
    assert built.image_size == teacher.image_size
