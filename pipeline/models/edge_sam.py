"""EdgeSAM: RepViT as SAM's image encoder.

Source: Zhou et al. 2023, "EdgeSAM: Prompt-In-the-Loop Distillation for SAM" (arXiv 2312.06660), with the encoder of
Wang et al. 2023, "RepViT: Revisiting Mobile CNN From ViT Perspective" (arXiv 2307.09283). Modules have the names of the
published checkpoints, in the form in which they are trained, so these load strictly and give the published outputs.
The published weights are under the S-Lab License 1.0, which allows non-commercial use only; this project has none.

Differences: the last norm of a residual starts at 0.1 instead of 0, so that every weight learns from the first step;
export fuses the convolutions of `DepthwiseMixer` (`pipeline.export`), while checkpoints keep them separate. The nano
variant is this project's own: the same code with smaller sizes, for the demo and for tests.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.core.errors import InputError
from pipeline.models.nano import assemble_nano
from pipeline.models.neck import sam_neck
from pipeline.models.sam import EMBEDDING_CHANNELS, Sam, assemble
from pipeline.models.tiny_vit import conv

_EXPAND = 2
_SQUEEZE = 4
_RESIDUAL_SCALE = 0.1
"""Initial scale of a channel mixer's residual."""


class DepthwiseMixer(nn.Module):
    """A depthwise 3x3 and a depthwise 1x1 convolution, each with batch norm, and the identity, summed."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = conv(width, width, 3, groups=width)
        self.conv1 = conv(width, width, 1, groups=width)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Same shape."""
        y: Tensor = self.conv(x) + self.conv1(x) + x
        return y

    @torch.no_grad()
    def folded(self) -> nn.Module:
        """One depthwise 3x3 convolution with bias and a shortcut, equal in evaluation mode up to rounding."""
        (weight, bias), (center, center_bias) = _without_norm(self.conv), _without_norm(self.conv1)
        weight[:, :, 1:2, 1:2] += center
        return _FusedMixer(weight, bias + center_bias)


class _FusedMixer(nn.Module):
    """A `DepthwiseMixer` as one convolution and a shortcut.

    The identity could be part of the weight too, but OpenVINO 2026.4 computes the product of an int8 depthwise
    convolution and the squeeze-and-excitation's gate wrongly, and int8 would round the identity.
    """

    def __init__(self, weight: Tensor, bias: Tensor) -> None:
        super().__init__()
        self.conv = nn.Conv2d(weight.shape[0], weight.shape[0], 3, padding=1, groups=weight.shape[0])
        self.conv.weight, self.conv.bias = (nn.Parameter(value, requires_grad=False) for value in (weight, bias))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = x + self.conv(x)
        return y


def _without_norm(layer: nn.Sequential) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that equals a convolution and its batch norm in evaluation mode."""
    convolution, norm = layer.get_submodule("c"), layer.get_submodule("bn")
    assert isinstance(convolution, nn.Conv2d)
    assert isinstance(norm, nn.BatchNorm2d)
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = norm.weight / (norm.running_var + norm.eps).sqrt()
    return convolution.weight * scale[:, None, None, None], norm.bias - norm.running_mean * scale


class SqueezeExcite(nn.Module):
    """Scale each channel by a function of all channels' means."""

    def __init__(self, width: int) -> None:
        super().__init__()
        squeezed = max(8, (width // _SQUEEZE + 4) // 8 * 8)  # a multiple of 8, as published
        self.fc1 = nn.Conv2d(width, squeezed, 1)
        self.fc2 = nn.Conv2d(squeezed, width, 1)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Same shape."""
        return x * self.fc2(F.relu(self.fc1(x.mean(dim=(2, 3), keepdim=True)))).sigmoid()


class ChannelMixer(nn.Module):
    """1x1 to twice the channels, GELU, 1x1 back, and the shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.m = nn.Sequential(conv(width, _EXPAND * width), nn.GELU(), conv(_EXPAND * width, width))
        self.m.get_parameter("2.bn.weight").data.fill_(_RESIDUAL_SCALE)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Same shape."""
        y: Tensor = x + self.m(x)
        return y


class Block(nn.Module):
    """A token mixer and a channel mixer. A block that changes the number of channels also halves the resolution.

    Args:
        channels_in: Channels in.
        channels_out: Channels out.
        squeeze: Whether the token mixer has a `SqueezeExcite`; a block that halves has none.
    """

    def __init__(self, channels_in: int, channels_out: int, *, squeeze: bool = False) -> None:
        super().__init__()
        if channels_in != channels_out:
            self.token_mixer = nn.Sequential(
                conv(channels_in, channels_in, 3, stride=2, groups=channels_in),
                nn.Identity(),
                conv(channels_in, channels_out),
            )
        else:
            gate = SqueezeExcite(channels_in) if squeeze else nn.Identity()
            self.token_mixer = nn.Sequential(DepthwiseMixer(channels_in), gate)
        self.channel_mixer = ChannelMixer(channels_out)

    def forward(self, x: Float[Tensor, "b _ _ _"]) -> Float[Tensor, "b _ _ _"]:
        """Features ``(B, channels_in, h, w)`` to ``(B, channels_out, h, w)``, or half of h and w."""
        y: Tensor = self.channel_mixer(self.token_mixer(x))
        return y


class Upsample(nn.Module):
    """Twice the height and width, bicubic, in fp32."""

    def forward(self, x: Float[Tensor, "b c _ _"]) -> Float[Tensor, "b c _ _"]:
        """``(B, C, h, w)`` to ``(B, C, 2 h, 2 w)``."""
        return F.interpolate(x.float(), scale_factor=2.0, mode="bicubic", align_corners=False).to(x.dtype)


class FuseCoarse(nn.Module):
    """Project the coarsest stage to the embedding's channels and upsample it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.op_list = nn.ModuleList([nn.Conv2d(width, EMBEDDING_CHANNELS, 1, bias=False), Upsample()])

    def forward(self, x: Float[Tensor, "b _ h w"]) -> Float[Tensor, "b 256 _ _"]:
        """``(B, width, h, w)`` to ``(B, 256, 2 h, 2 w)``."""
        for op in self.op_list:
            x = op(x)
        return x


class RepViT(nn.Module):
    """``(B, 3, s, s)`` to ``(B, 256, s/16, s/16)``: the sum of the last two stages, at 1/16 and 1/32, then SAM's neck.

    Args:
        widths: Channels of the four stages, at 1/4, 1/8, 1/16 and 1/32 of the resolution.
        depths: Blocks of each that keep the resolution.
    """

    stride = 32

    def __init__(self, widths: tuple[int, int, int, int], depths: tuple[int, int, int, int]) -> None:
        super().__init__()
        first = widths[0]
        stem = nn.Sequential(conv(3, first // 2, 3, stride=2), nn.GELU(), conv(first // 2, first, 3, stride=2))
        stages = [_stage(width, depth) for width, depth in zip(widths, depths, strict=True)]
        halving = [Block(a, b) for a, b in pairwise(widths)]
        blocks: list[nn.Module] = [stem, *stages[0]]
        for block, stage in zip(halving, stages[1:], strict=True):
            blocks += [block, *stage]
        self.features = nn.ModuleList(blocks)
        self.coarse_from = len(blocks) - depths[-1] - 1
        self.fuse_stage2 = nn.Conv2d(widths[-2], EMBEDDING_CHANNELS, 1, bias=False)
        self.fuse_stage3 = FuseCoarse(widths[-1])
        self.neck = sam_neck(EMBEDDING_CHANNELS)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 256 _ _"]:
        """Image embeddings of normalised, padded images.

        Raises:
            InputError: A side is not a multiple of 32.
        """
        height, width = images.shape[-2:]
        if height % self.stride or width % self.stride:
            raise InputError(
                f"RepViT takes images whose sides are multiples of {self.stride} pixels, not {height} x {width}: "
                "pad them with pipeline.ops.geometry.to_input."
            )
        fine = images
        for block in self.features[: self.coarse_from]:
            fine = block(fine)
        coarse = fine
        for block in self.features[self.coarse_from :]:
            coarse = block(coarse)
        y: Tensor = self.neck(self.fuse_stage2(fine) + self.fuse_stage3(coarse))
        return y

    def feature_layers(self) -> list[nn.Module]:
        """All blocks without the stem, see `pipeline.models.feature_layers`."""
        return list(self.features[1:])


def _stage(width: int, depth: int) -> Sequence[Block]:
    """Every second block, but never the last one, has squeeze-and-excitation."""
    return [Block(width, width, squeeze=i % 2 == 0 and i < depth - 1) for i in range(depth)]


def edge_sam() -> Sam:
    """9.6 M parameters, 5.5 M of them the encoder's (RepViT-M1), which costs 20.0 GMAC; 1024 pixels in."""
    encoder = RepViT(widths=(48, 96, 192, 384), depths=(3, 3, 15, 2))
    return assemble(encoder, image_size=1024, input_size=1024, embedding_size=64)


def edge_sam_nano(teacher: str = "bundled") -> Sam:
    """6.5 M parameters, 2.4 M of them the encoder's, which costs 0.43 GMAC; 256 pixels in and in the prompt frame.

    Args:
        teacher: The bundled teacher whose frame and prompt encoder it takes. `bundled_v2` has twice the side.
    """
    return assemble_nano(teacher, lambda frame: RepViT(widths=(24, 48, 128, 256), depths=(1, 2, 6, 3)))
