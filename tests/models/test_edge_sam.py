import pytest
import torch

from pipeline.core.errors import InputError
from pipeline.export.sam import Foldable
from pipeline.models import build
from pipeline.models.edge_sam import DepthwiseMixer, SqueezeExcite
from tests.reference.published import rebuilt


def test_the_fused_mixer_gives_the_same_as_its_branches():
    generator = torch.Generator().manual_seed(0)
    mixer = DepthwiseMixer(24)
    for key, value in mixer.state_dict().items():
        if value.is_floating_point():
            value.copy_(torch.rand(value.shape, generator=generator) + (0.5 if key.endswith("running_var") else -0.5))
    mixer.eval()
    x = torch.randn(2, 24, 9, 7, generator=generator)
    with torch.inference_mode():
        expected, fused = mixer(x), mixer.folded()
        assert isinstance(mixer, Foldable)
        assert [tuple(p.shape) for p in fused.parameters()] == [(24, 1, 3, 3), (24,)]
        torch.testing.assert_close(fused(x), expected, rtol=1e-5, atol=1e-5)
        assert torch.equal(mixer(x), expected)


def test_the_fused_encoder_gives_the_published_sizes_embedding():
    """To 1e-5 of the embedding's scale, with every norm's statistics away from 0 and 1."""
    encoder = rebuilt("edge_sam").image_encoder
    x = torch.randn(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = encoder(x)
        mixers = [
            (m, name) for m in encoder.modules() for name, c in m.named_children() if isinstance(c, DepthwiseMixer)
        ]
        assert len(mixers) == 23
        for module, name in mixers:
            setattr(module, name, getattr(module, name).folded())
        difference = (encoder(x) - expected).abs().max()
    assert difference < 1e-5 * expected.abs().max()


def test_every_second_block_but_the_last_of_a_stage_has_squeeze_and_excitation():
    with torch.device("meta"):
        encoder = build("edge_sam").image_encoder
    gated = [
        i for i, block in enumerate(encoder.features) if any(isinstance(m, SqueezeExcite) for m in block.modules())
    ]
    assert gated == [1, 5, 9, 11, 13, 15, 17, 19, 21, 25]


def test_sides_that_are_not_multiples_of_32_are_refused():
    with pytest.raises(InputError, match="multiples of 32 pixels, not 256 x 240"):
        build("edge_sam_nano").image_encoder(torch.zeros(1, 3, 256, 240))
