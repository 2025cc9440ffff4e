"""What TinyViT adds to the published function: any side, nothing remembered, a classifier that is only carried."""

import pytest
import torch

from pipeline.core.errors import InputError
from pipeline.models import build
from pipeline.models.tiny_vit import Stage, TinyViT, WindowAttention

STAGES = (
    Stage(8, 1),
    Stage(16, 1, heads=2, window=3),
    Stage(24, 2, heads=3, window=4, halves=False),
    Stage(32, 1, 4, 3),
)


@pytest.fixture
def encoder():
    torch.manual_seed(0)
    encoder = TinyViT(STAGES, classes=10).eval()
    for key, parameter in encoder.named_parameters():
        if key.endswith("attention_biases"):
            torch.nn.init.normal_(parameter)
    return encoder


def images(*size, seed=0):
    return torch.randn(1, 3, *size, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [(16, 16), (48, 80), (64, 64), (112, 32)])
def test_any_side_that_the_stages_divide_gives_one_cell_for_sixteen_pixels(encoder, size):
    with torch.inference_mode():
        embedding = encoder(images(*size))
    assert embedding.shape == (1, 256, size[0] // 16, size[1] // 16)
    assert embedding.isfinite().all()


@pytest.mark.parametrize("size", [(40, 64), (64, 100)])
def test_other_sides_are_refused_in_words(encoder, size):
    with pytest.raises(InputError, match=rf"multiples of 16 pixels, not {size[0]} x {size[1]}: pad them"):
        encoder(images(*size))


def test_biases_count_in_either_mode_and_at_once():
    torch.manual_seed(0)
    attention, x = WindowAttention(16, 2, 3), torch.randn(1, 6, 7, 16)
    with torch.inference_mode():
        outputs = []
        for mode in (True, False, True, False):
            attention.train(mode)
            outputs.append(attention(x))
            attention.attention_biases.normal_()
            outputs.append(attention(x))
            changed = WindowAttention(16, 2, 3).train(not mode)
            changed.load_state_dict(attention.state_dict(), strict=True)
            assert torch.equal(changed(x), outputs[-1])
    for i, before in enumerate(outputs):
        for j, after in enumerate(outputs):
            same = i == j or (min(i, j) % 2 == 1 and max(i, j) == min(i, j) + 1)  # only the mode changed
            assert torch.equal(before, after) == same


def test_padding_beyond_the_window_grid_is_attended_to_as_published_and_cells_of_other_windows_are_not():
    torch.manual_seed(0)
    attention, x = WindowAttention(16, 2, 3).eval(), torch.randn(1, 4, 4, 16)
    other = x.clone()
    other[:, 3, 3] += 1
    with torch.inference_mode():
        before, after = attention(x), attention(other)
        padded = attention(torch.nn.functional.pad(x, (0, 0, 0, 2, 0, 2)))
    moved = (before != after).any(-1)[0]
    assert torch.equal(moved, torch.tensor([[i == 3 and j == 3 for j in range(4)] for i in range(4)]))
    torch.testing.assert_close(before, padded[:, :4, :4], rtol=0, atol=1e-6)


def test_no_image_passes_through_the_classifier(encoder):
    assert not any(p.requires_grad for name in ("norm_head", "head") for p in getattr(encoder, name).parameters())
    with torch.inference_mode():
        before = encoder(images(32, 32))
        encoder.head.weight.fill_(torch.nan)
        encoder.norm_head.weight.fill_(torch.nan)
        assert torch.equal(encoder(images(32, 32)), before)
    assert not hasattr(build("tinysam_nano").image_encoder, "head")
