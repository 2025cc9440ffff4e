"""Our TinySAM is the published function and takes the published checkpoints, MobileSAM's too (see parity/README.md).

The published code keeps the bias of attention from the last ``eval()`` on, and the fixture's weights were loaded after
that: its outputs are those of the rebuilt weights with biases of zero, what the constructor gives. So the fixture shows
all but the biases; these are shown against timm's TinyViT, which reads them off the weights.
"""

import pytest
import torch
from timm.models.tiny_vit import TinyVitBlock

from pipeline.models.tiny_vit import AttentionBlock
from tests.reference.published import PROMPTS, check_embedding, check_keys, check_masks, encoded, rebuilt

PUBLISHED = "tinysam_vit_t"


@pytest.fixture(scope="module")
def result():
    sam = rebuilt("tinysam")
    biases = [p for key, p in sam.named_parameters() if key.endswith("attention_biases")]
    assert len(biases) == 10
    for bias in biases:
        bias.data.zero_()
    return encoded(sam, PUBLISHED)


def test_state_dict_has_the_published_keys_shapes_and_types():
    check_keys("tinysam", PUBLISHED)


def test_image_embedding_is_the_published_one(result):
    _, embedding, outputs = result
    check_embedding(embedding, outputs)


@pytest.mark.parametrize("kind", PROMPTS)
def test_masks_and_scores_are_the_published_ones(result, kind):
    check_masks(*result, kind)


@pytest.mark.parametrize(("width", "heads", "window"), [(128, 4, 7), (160, 5, 14)])
@pytest.mark.parametrize("size", [(14, 28), (16, 9)])
def test_a_block_with_biases_gives_what_timms_gives(width, heads, window, size):
    theirs = TinyVitBlock(width, heads, window)
    g = torch.Generator().manual_seed(0)
    for key, tensor in theirs.state_dict().items():
        if tensor.is_floating_point():
            spread = 1.0 if key.endswith("attention_biases") else 0.05
            tensor.add_(spread * torch.randn(tensor.shape, generator=g))
    ours = AttentionBlock(width, heads, window)
    state = {key.replace("local_conv.conv", "local_conv.c"): value for key, value in theirs.state_dict().items()}
    ours.load_state_dict(state, strict=True)
    x = torch.randn(2, *size, width, generator=g)
    with torch.inference_mode():
        expected = theirs.eval()(x)
        found = ours.eval()(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        ours.attn.attention_biases.zero_()
        without = ours(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
    scale = float(expected.abs().max())
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * scale)
    assert not torch.allclose(without, expected, rtol=0, atol=1e-3 * scale)
