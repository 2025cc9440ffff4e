"""SAM-Lightening: its size, which tokens reach which, and weights that only fit the attention they were meant for."""

import pytest
import torch

from pipeline.core.artifact import Card, Contents
from pipeline.core.errors import InputError
from pipeline.models import build
from pipeline.models.cost import count_parameters
from pipeline.models.sam import load_weights, save_checkpoint
from pipeline.models.sam_lightening import Attention, ImageEncoder, Projection
from pipeline.models.students import load_checkpoint
from pipeline.runtime import load

MIXED = {"attention": [[[64, 1], [256, 2]], [[128, 2]], [[256, 3]], [[256, 1]]]}


def images(side=256, batch=1):
    return torch.randn(batch, 3, side, side, generator=torch.Generator().manual_seed(0))


def test_the_encoder_has_the_authors_count_of_parameters_and_the_paper_s_default_attention():
    with torch.device("meta"):
        sam = build("sam_lightening")
    assert count_parameters(sam.image_encoder) == 14_091_136
    assert [block.attn.pairs for block in sam.image_encoder.blocks] == [((1024, 2),)] * 6


def reach(encoder, grid):
    """For each token, which others its value after the blocks depends on: ``(tokens, tokens)``."""
    tokens = torch.randn(1, grid * grid, 12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    jacobian = torch.autograd.functional.jacobian(lambda x: encoder.blocks(x).sum(-1)[0], tokens)
    return jacobian[:, 0].abs().sum(-1) > 0


def small_encoder(depth):
    torch.manual_seed(0)
    encoder = ImageEncoder(side=128, width=12, heads=2, attention=[[(16, 2)]] * depth).double().eval()
    for parameter in encoder.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return encoder


def test_one_block_mixes_a_class_of_a_band_of_rows_and_two_blocks_mix_the_whole_image():
    grid = torch.arange(64)
    row, column = grid // 8, grid % 8
    band = (row[:, None] // 2 == row // 2) & (column[:, None] % 2 == column % 2)
    assert torch.equal(reach(small_encoder(1), 8), band)
    assert reach(small_encoder(2), 8).all()


def test_two_maps_in_a_row_are_applied_as_one():
    torch.manual_seed(0)
    projection, x = Projection(12).double(), torch.randn(2, 5, 12, dtype=torch.float64)
    torch.nn.init.normal_(projection.outer.weight)
    expected = projection.outer(projection.inner(x))
    torch.testing.assert_close(projection(x), expected, rtol=0, atol=1e-12)
    torch.testing.assert_close(projection.folded()(x), expected, rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [(128, 128), (256, 240)])
def test_images_without_positions_are_refused_in_words(size):
    encoder = build("sam_lightening_nano").image_encoder
    with pytest.raises(InputError, match=rf"takes 256 x 256 pixels, not {size[0]} x {size[1]}"):
        encoder(torch.zeros(1, 3, *size))


@pytest.mark.parametrize(
    ("attention", "says"),
    [
        ([[[64, 2]]] * 3, "for 4 blocks, not"),
        ("64/2", "for 4 blocks, not '64/2'"),
        ([[64, 2]] * 4, r"for each block, not \[64, 2\]"),
        ([[]] * 4, r"for each block, not \[\]"),
        ([[[64, 4]]] * 4, r"intervals that divide 6 heads"),
        ([[[64, 0]]] * 4, "integers of at least 1"),
        ([[[64.0, 2]]] * 4, "integers of at least 1"),
        ([[[True, 2]]] * 4, "integers of at least 1"),
        ([[[64, 2, 1]]] * 4, "for each block"),
    ],
)
def test_attention_that_does_not_fit_is_refused_in_one_line(attention, says):
    with pytest.raises(InputError, match=says) as refused:
        build("sam_lightening_nano", {"attention": attention})
    assert "\n" not in str(refused.value)


def test_attention_decides_the_function_at_equal_weights_and_a_checkpoint_carries_it(tmp_path):
    plain, mixed = (build("sam_lightening_nano", options, seed=5).eval() for options in ({}, MIXED))
    weights = {k: v for k, v in plain.state_dict().items() if not k.endswith("_extra_state")}
    assert all(torch.equal(mixed.state_dict()[key], value) for key, value in weights.items())
    save_checkpoint(mixed, tmp_path)
    Card.seal(tmp_path, Contents(kind="checkpoint", model="sam_lightening_nano", options=MIXED), {})
    with torch.inference_mode():
        expected = mixed.image_encoder(images())
        assert not torch.allclose(plain.image_encoder(images()), expected, atol=1e-3)
        assert torch.equal(load_checkpoint(tmp_path).image_encoder(images()), expected)
        assert torch.equal(load(tmp_path).encode(images()), expected)


def test_weights_meant_for_other_attention_are_refused_though_every_shape_fits(tmp_path):
    options = {"attention": [[[128, 2]], [[128, 2]], [[64, 2]], [[128, 2]]]}
    save_checkpoint(build("sam_lightening_nano", options), tmp_path)
    says = r"\(segment, interval\) \[\[64, 2\]\] do not fit a block with \[\[128, 2\]\]: build .* options on their card"
    with pytest.raises(InputError, match=rf"model\.safetensors: .*{says}"):
        load_weights(build("sam_lightening_nano"), tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=says):
        build("sam_lightening_nano").load_state_dict(build("sam_lightening_nano", options).state_dict())
    Card.seal(tmp_path, Contents(kind="checkpoint", model="sam_lightening_nano"), {})  # a card that lost its options
    with pytest.raises(InputError, match=says):
        load_checkpoint(tmp_path)


def test_settings_of_several_pairs_are_told_apart():
    one, two = Attention(12, 2, [(8, 2)]), Attention(12, 2, [(8, 2), (4, 1)])
    with pytest.raises(InputError, match=r"\[\[8, 2\], \[4, 1\]\] do not fit a block with \[\[8, 2\]\]"):
        one.load_state_dict(two.state_dict())
