"""Linear attention, the neck's resize and the channel norm against the plain way to compute them."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn import functional as F

from pipeline.models.efficientvit import LiteMLA, linear_attention
from pipeline.models.efficientvit_sam import Neck
from pipeline.models.neck import ChannelNorm


def plain_attention(qkv):
    q, k, v = (x.double() for x in qkv.chunk(3, dim=2))
    weights = torch.einsum("bhdi,bhdj->bhij", q.relu(), k.relu())
    return torch.einsum("bhij,bhdj->bhdi", weights / (weights.sum(-1, keepdim=True) + 1e-15), v)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 80), seed=st.integers(0, 2**16))
def test_linear_attention_is_attention_with_relu_weights_on_both_sides_of_the_switch(n, seed):
    qkv = torch.randn(2, 3, 96, n, generator=torch.Generator().manual_seed(seed))
    torch.testing.assert_close(linear_attention(qkv).double(), plain_attention(qkv), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("n", [16, 64])
def test_a_query_without_positive_channels_gives_zeros_not_nan(n):
    qkv = torch.randn(1, 1, 96, n, generator=torch.Generator().manual_seed(0))
    qkv[:, :, :32, 0] = -1
    out = linear_attention(qkv)
    assert (out[..., 0] == 0).all()
    assert out.isfinite().all()


def test_attention_is_in_fp32_under_autocast():
    attention = LiteMLA(64, 3).eval()
    attention.qkv.conv.weight.data.mul_(3e3)  # products beyond what half precision can sum
    x = torch.rand(1, 64, 12, 12, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = attention(x)
        with torch.autocast("cpu", torch.float16):
            half = attention(x)
    assert half.isfinite().all()
    torch.testing.assert_close(half.float(), expected, rtol=0, atol=0.02 * expected.abs().max().item())


def test_resize_that_is_left_out_would_have_changed_nothing():
    x = torch.randn(1, 8, 64, 64, generator=torch.Generator().manual_seed(0))
    assert torch.equal(F.interpolate(x, (64, 64), mode="bicubic", align_corners=False), x)


def test_neck_refuses_another_number_of_maps_than_it_was_built_for():
    neck = Neck([8, 4], depth=1, expand=1, side=4)
    with pytest.raises(ValueError, match="zip"):
        neck([torch.zeros(1, 8, 2, 2)])


def test_channel_norm_normalises_each_position_over_its_channels():
    x = 5 + 3 * torch.randn(2, 256, 3, 4, generator=torch.Generator().manual_seed(0))
    norm = ChannelNorm(256, eps=1e-6)
    expected = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(norm(x), expected, rtol=0, atol=1e-5)
