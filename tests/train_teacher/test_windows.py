import numpy as np
import pytest
import torch

from pipeline.data.prompts import Prompts
from pipeline.models import build
from pipeline.models.decoder import decode
from pipeline.train_teacher.rounds import two_rounds
from pipeline.train_teacher.windows import Window, corner_px, positioned, random_window, side_px, whole


@pytest.fixture(scope="module")
def sam():
    return build("bundled_v2").eval()


def test_a_window_is_measured_in_the_frames_pixels(sam):
    assert (side_px(sam, whole(sam)), corner_px(sam, whole(sam))) == (512, (0.0, 0.0))
    assert (side_px(sam, Window(3, 5, 16)), corner_px(sam, Window(3, 5, 16))) == (256, (48.0, 80.0))


def test_random_windows_lie_in_the_frame_and_reach_its_borders(sam):
    rng = np.random.default_rng(0)
    windows = [random_window(rng, sam, 16) for _ in range(300)]
    assert {window.column for window in windows} == {window.row for window in windows} == set(range(17))


@torch.inference_mode()
def test_a_windows_cells_keep_the_positions_of_the_frame(sam):
    full = sam.prompt_encoder.get_dense_pe()
    with positioned(sam, Window(3, 5, 16)):
        part = sam.prompt_encoder.get_dense_pe()
        logits, _ = decode(sam, torch.randn(1, 256, 16, 16), torch.rand(1, 2, 2, 2), torch.ones(1, 2, 2))
    assert torch.equal(part, full[..., 5:21, 3:19])
    assert logits.shape == (1, 2, 4, 64, 64)
    assert sam.embedding_size == 32
    assert torch.equal(sam.prompt_encoder.get_dense_pe(), full)


@torch.inference_mode()
def test_the_encoder_adds_the_windows_own_positions():
    encoder = build("bundled_v2").eval().image_encoder
    torch.nn.init.normal_(encoder.position.weight, generator=torch.Generator().manual_seed(0))
    images = torch.zeros(1, 3, 256, 256)
    corner, same, other = encoder(images), encoder(images, 0, 0), encoder(images, 3, 5)
    assert torch.equal(corner, same)
    assert not torch.allclose(corner, other, atol=0.1)


@torch.inference_mode()
def test_prompts_of_a_window_are_moved_into_the_frame(sam, monkeypatch):
    asked = []

    def spy(sam, embeddings, coords, labels, mask_input=None):
        asked.append(coords)
        return decode(sam, embeddings, coords, labels, mask_input)

    monkeypatch.setattr("pipeline.train_teacher.rounds.decode", spy)
    coords, labels = torch.tensor([[[[10.0, 20.0], [70.0, 90.0]]]]), torch.tensor([[[2.0, 3.0]]])
    targets = torch.zeros(1, 1, 128, 128)
    targets[..., 10:44, 6:34] = 1
    prompts = Prompts(coords, labels, targets, torch.tensor([[True]]))
    embeddings, rngs = torch.randn(1, 256, 16, 16), [np.random.default_rng(0)]
    two_rounds(sam, embeddings, prompts, rngs, correct=True, window=Window(2, 4, 16))
    corner = torch.tensor([32.0, 64.0])
    assert torch.equal(asked[0], coords + corner)
    assert torch.equal(asked[1][:, :, :2], coords + corner)
    assert ((asked[1][:, :, 2] >= corner) & (asked[1][:, :, 2] <= corner + 256)).all()
