import pytest
import torch

from pipeline.core.errors import InputError
from pipeline.models import build
from pipeline.models.feature_layers import blocks, captured_features, widths

COUNTS = {
    "bundled": 5,
    "efficientvit_sam_nano": 9,
    "tinysam_nano": 6,
    "sam_lightening_nano": 4,
    "edge_sam_nano": 15,
}


@pytest.mark.parametrize(("name", "count"), COUNTS.items())
def test_every_block_gives_a_map_and_the_embedding_stays_what_it_is(name, count):
    encoder = build(name).image_encoder.eval()
    images = torch.randn(2, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    assert len(blocks(encoder)) == count
    with torch.inference_mode():
        expected = encoder(images)
        with captured_features(encoder, range(count)) as features:
            assert torch.equal(encoder(images), expected)
    assert sorted(features) == [*range(count)]
    assert all(each.ndim == 4 and each.shape[0] == 2 and each.shape[2] == each.shape[3] for each in features.values())
    assert widths(encoder, range(count), 256) == {number: each.shape[1] for number, each in features.items()}
    features.clear()
    encoder(images)
    assert not features, "a tap outlived its block"


def test_tokens_become_the_map_they_are_of():
    encoder = build("sam_lightening_nano").image_encoder.eval()
    with torch.inference_mode(), captured_features(encoder, [3]) as features:
        embeddings = encoder(torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(0)))
        assert torch.equal(encoder.neck(features[3]), embeddings)


@pytest.mark.parametrize(
    ("name", "count"), [("vit_b", 12), ("efficientvit_sam_l0", 15), ("tinysam", 12), ("edge_sam", 26)]
)
def test_full_sizes_have_their_blocks(name, count):
    with torch.device("meta"):
        assert len(blocks(build(name).image_encoder)) == count


def test_features_of_sams_own_encoder_have_their_channels_in_front():
    from segment_anything.modeling import ImageEncoderViT

    encoder = ImageEncoderViT(img_size=32, patch_size=16, embed_dim=24, depth=2, num_heads=2, out_chans=256)
    assert widths(encoder, [0, 1], 32) == {0: 24, 1: 24}


def test_a_block_that_is_not_there_is_named():
    with (
        pytest.raises(InputError, match="has no block 9: its blocks are 0 to 3"),
        captured_features(build("sam_lightening_nano").image_encoder, [9]),
    ):
        pass
