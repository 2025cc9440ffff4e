"""EfficientViT's large backbone: convolutional stages, then stages with multi-scale linear attention.

Source: Cai et al. 2023, "EfficientViT: Multi-Scale Linear Attention for High-Resolution Dense Prediction", and the
backbone of EfficientViT-SAM (Zhang et al. 2024, arXiv 2402.05008). Modules have the names of the published checkpoints,
which therefore load as they are. Blocks are plain ``nn.Sequential`` with named children; `Block` adds the shortcut.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.models.precision import fp32

NORM_EPS = 1e-6
HEAD_DIM = 32
ATTENTION_EPS = 1e-15
"""Underflows in fp16, where the quotient would become 0/0; attention therefore runs in fp32."""

BlockKind = Literal["res", "fmb", "mb", "att"]


def conv(
    channels_in: int,
    channels_out: int,
    kernel: int = 1,
    *,
    stride: int = 1,
    groups: int = 1,
    norm: bool = True,
    act: bool = True,
    bias: bool = False,
) -> nn.Sequential:
    """A convolution, then optional batch norm and tanh-approximated GELU; stride 1 keeps height and width."""
    layers: OrderedDict[str, nn.Module] = OrderedDict(
        conv=nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, groups=groups, bias=bias)
    )
    if norm:
        layers["norm"] = nn.BatchNorm2d(channels_out, eps=NORM_EPS)
    if act:
        layers["act"] = nn.GELU(approximate="tanh")
    return nn.Sequential(layers)


def res_block(width: int) -> nn.Sequential:
    """Two 3x3 convolutions."""
    return nn.Sequential(OrderedDict(conv1=conv(width, width, 3), conv2=conv(width, width, 3, act=False)))


def fused_mb_conv(channels_in: int, channels_out: int, expand: int, stride: int = 1) -> nn.Sequential:
    """A 3x3 convolution to ``expand`` times the channels, and 1x1 back."""
    middle = channels_in * expand
    return nn.Sequential(
        OrderedDict(
            spatial_conv=conv(channels_in, middle, 3, stride=stride),
            point_conv=conv(middle, channels_out, act=False),
        )
    )


def mb_conv(channels_in: int, channels_out: int, expand: int, stride: int = 1) -> nn.Sequential:
    """1x1 to ``expand`` times the channels, depthwise 3x3, 1x1 back; only the last has a norm, the others a bias."""
    middle = channels_in * expand
    return nn.Sequential(
        OrderedDict(
            inverted_conv=conv(channels_in, middle, norm=False, bias=True),
            depth_conv=conv(middle, middle, 3, stride=stride, groups=middle, norm=False, bias=True),
            point_conv=conv(middle, channels_out, act=False),
        )
    )


class Block(nn.Module):
    """``main``, with a shortcut around it unless it changes the shape."""

    def __init__(self, main: nn.Module, *, shortcut: bool = True) -> None:
        super().__init__()
        self.main = main
        self.shortcut = shortcut

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c2 h2 w2"]:
        """``x + main(x)``, or ``main(x)``."""
        y: Tensor = self.main(x)
        return x + y if self.shortcut else y


class LiteMLA(nn.Module):
    """Multi-scale linear attention with ReLU as its kernel, over heads of 32 channels.

    Queries, keys and values come at two scales: as projected, and aggregated over a neighbourhood. Each scale has
    ``width / 32`` heads. Attention always runs in fp32, because it sums thousands of un-normalised products.

    Args:
        width: Channels in and out; a multiple of 32.
        kernel: Side of the neighbourhood of the second scale.
    """

    def __init__(self, width: int, kernel: int) -> None:
        super().__init__()
        heads = width // HEAD_DIM
        self.qkv = conv(width, 3 * width, norm=False, act=False)
        self.aggreg = nn.ModuleList(
            [
                nn.Sequential(
                    nn.Conv2d(3 * width, 3 * width, kernel, padding=kernel // 2, groups=3 * width, bias=False),
                    nn.Conv2d(3 * width, 3 * width, 1, groups=3 * heads, bias=False),
                )
            ]
        )
        self.proj = conv(2 * width, width, act=False)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Each position attends to all others."""
        b, _, h, w = x.shape
        qkv = self.qkv(x)
        scales = torch.cat([qkv, *(gather(qkv) for gather in self.aggreg)], dim=1)
        with fp32(x.device):
            attended = linear_attention(scales.float().reshape(b, -1, 3 * HEAD_DIM, h * w))
        y: Tensor = self.proj(attended.reshape(b, -1, h, w).to(qkv.dtype))
        return y


def linear_attention(qkv: Float[Tensor, "b heads qkv n"]) -> Float[Tensor, "b heads d n"]:
    """Attention with weights ``relu(q) . relu(k)``, divided by their sum.

    Linear in the number of positions n. Where n is at most the head's dimension, the n x n matrix is the smaller one
    and is formed. A query or key that is negative in all channels gives zeros.

    Args:
        qkv: Queries, keys and values along dimension 2, in that order, fp32.
    """
    q, k, v = qkv.chunk(3, dim=2)
    q, k = q.relu(), k.relu()
    if q.shape[-1] <= q.shape[-2]:
        weights = k.transpose(-1, -2) @ q
        return v @ (weights / weights.sum(dim=2, keepdim=True).clamp(min=ATTENTION_EPS))
    # A row of ones appended to the values yields the sum of weights in the same product.
    out = (nn.functional.pad(v, (0, 0, 0, 1), value=1.0) @ k.transpose(-1, -2)) @ q
    # The published code adds the epsilon: the same in fp32, but graph optimisers drop so small a term.
    return out[:, :, :-1] / out[:, :, -1:].clamp(min=ATTENTION_EPS)


def attention_block(width: int, expand: int, kernel: int) -> nn.Sequential:
    """Attention over the whole image, then a local `mb_conv`."""
    return nn.Sequential(
        OrderedDict(context_module=Block(LiteMLA(width, kernel)), local_module=Block(mb_conv(width, width, expand)))
    )


@dataclass(frozen=True)
class Stage:
    """One resolution of the backbone, half that of the one before.

    Args:
        block: Made of ``res``, ``fmb`` (`fused_mb_conv`), ``mb`` (`mb_conv`) or ``att`` (`attention_block`).
        width: Channels.
        depth: Blocks with shortcut, after the one that halves the resolution.
        expand: Expansion within these blocks; ``res`` has none.
        down: Expansion of the block that halves the resolution; the first stage uses a plain convolution instead.
    """

    block: BlockKind
    width: int
    depth: int
    expand: int = 1
    down: int = 0


def _build_stage(stage: Stage, channels_in: int, *, first: bool, kernel: int) -> nn.Sequential:
    ops: list[nn.Module] = []
    if first:
        ops.append(conv(channels_in, stage.width, 3, stride=2))
    else:
        shrink = fused_mb_conv if stage.block == "fmb" else mb_conv
        ops.append(Block(shrink(channels_in, stage.width, stage.down, stride=2), shortcut=False))
    for _ in range(stage.depth):
        match stage.block:
            case "res":
                ops.append(Block(res_block(stage.width)))
            case "fmb":
                ops.append(Block(fused_mb_conv(stage.width, stage.width, stage.expand)))
            case "mb":
                ops.append(Block(mb_conv(stage.width, stage.width, stage.expand)))
            case "att":
                ops.append(attention_block(stage.width, stage.expand, kernel))
    return op_list(*ops)


def op_list(*ops: nn.Module) -> nn.Sequential:
    """Chain modules under the name that published checkpoints use."""
    return nn.Sequential(OrderedDict(op_list=nn.Sequential(*ops)))


class Backbone(nn.Module):
    """Stages at 1/2, 1/4, 1/8 ... of the input's resolution.

    Args:
        stages: From fine to coarse.
        kernel: Side of the neighbourhood that linear attention aggregates over.
    """

    def __init__(self, stages: Sequence[Stage], kernel: int) -> None:
        super().__init__()
        widths = [3, *(stage.width for stage in stages)]
        self.stages = nn.ModuleList(
            _build_stage(stage, widths[i], first=i == 0, kernel=kernel) for i, stage in enumerate(stages)
        )

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> list[Float[Tensor, "b _ _ _"]]:
        """The features of every stage, from fine to coarse."""
        features = [images]
        for stage in self.stages:
            features.append(stage(features[-1]))
        return features[1:]
