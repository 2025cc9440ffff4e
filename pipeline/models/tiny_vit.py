"""TinyViT, the encoder that TinySAM and MobileSAM share: convolutions at 1/4 resolution, then window attention.

Source: Wu et al. 2022, "TinyViT: Fast Pretraining Distillation for Small Vision Transformers" (arXiv 2207.10666), in
the form of MobileSAM (arXiv 2306.14289): the last stage keeps the resolution of the one before it, and SAM's neck
follows. Modules have the names of the published checkpoints, which therefore load unchanged.

Differences from the published code that do not change results:

- No state is cached between calls. The published code caches the attention bias at ``eval()`` and ignores later weight
  changes; here the bias is gathered from the weights in every forward pass.
- Any input size that is a multiple of the stride is accepted; the published code is fixed to 1024 pixels.
- Features stay ``(B, C, h, w)`` maps between blocks.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int32
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.core.errors import InputError
from pipeline.models.neck import sam_neck

MLP_EXPAND = 4
CONV_EXPAND = 4
STEM_STRIDE = 4


@dataclass(frozen=True)
class Stage:
    """Blocks at one resolution.

    Args:
        width: Channels.
        depth: Blocks.
        heads: Attention heads; 0 makes the blocks convolutional.
        window: Side of the attention windows, in cells.
        halves: Whether the transition to the next stage halves the resolution; unused in the last stage.
    """

    width: int
    depth: int
    heads: int = 0
    window: int = 0
    halves: bool = True


def conv(channels_in: int, channels_out: int, kernel: int = 1, *, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """A convolution and its batch norm; stride 1 keeps height and width."""
    return nn.Sequential(
        OrderedDict(
            c=nn.Conv2d(channels_in, channels_out, kernel, stride, kernel // 2, groups=groups, bias=False),
            bn=nn.BatchNorm2d(channels_out),
        )
    )


class ConvBlock(nn.Module):
    """1x1 to four times the channels, depthwise 3x3, 1x1 back, GELU after the shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        middle = CONV_EXPAND * width
        self.conv1 = conv(width, middle)
        self.conv2 = conv(middle, middle, 3, groups=middle)
        self.conv3 = conv(middle, width)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Same shape."""
        return F.gelu(x + self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x))))))


def downsample(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    """1x1 to the next stage's channels, strided depthwise 3x3, 1x1."""
    return nn.Sequential(
        OrderedDict(
            conv1=conv(channels_in, channels_out),
            act1=nn.GELU(),
            conv2=conv(channels_out, channels_out, 3, stride=stride, groups=channels_out),
            act2=nn.GELU(),
            conv3=conv(channels_out, channels_out),
        )
    )


class WindowAttention(nn.Module):
    """Attention among the cells of a window, with a learned bias for each distance between two cells.

    A map whose sides are not multiples of the window is zero-padded at the bottom and right. As in the published code,
    padding is normalised and attended to like any cell.

    Args:
        width: Channels in and out.
        heads: Number of heads, of ``width / heads`` channels each.
        window: Side of a window, in cells.
    """

    offsets: Int32[Tensor, " pairs"]

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads, self.window = heads, window
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window * window))
        self.register_buffer("offsets", _offsets(window), persistent=False)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        """Same shape, channels last."""
        b, height, width, _ = x.shape
        side = self.window
        rows, columns = -(-height // side), -(-width // side)
        x = F.pad(x, (0, 0, 0, columns * side - width, 0, rows * side - height))
        windows = x.unflatten(2, (columns, side)).unflatten(1, (rows, side)).transpose(2, 3).flatten(0, 2).flatten(1, 2)
        # Queries, keys and values of a head are contiguous.
        qkv = self.qkv(self.norm(windows)).unflatten(-1, (self.heads, 3, -1)).permute(3, 0, 2, 1, 4)
        # Gathered in every forward pass: a cached bias would go stale when the weights change.
        bias = self.attention_biases.index_select(1, self.offsets).unflatten(1, (side * side, side * side))
        y = F.scaled_dot_product_attention(qkv[0], qkv[1], qkv[2], attn_mask=bias[None])
        y = self.proj(y.transpose(1, 2).flatten(2))
        y = y.unflatten(1, (side, side)).unflatten(0, (b, rows, columns)).transpose(2, 3).flatten(3, 4).flatten(1, 2)
        return y[:, :height, :width]


def _offsets(window: int) -> Int32[Tensor, " pairs"]:
    """Index of each cell pair's (row, column) distance among the ``window * window`` biases, in row-major order."""
    positions = torch.arange(window, dtype=torch.int32)
    distances = (positions[:, None] - positions).abs()
    return (distances[:, None, :, None] * window + distances[None, :, None, :]).flatten()


class Mlp(nn.Module):
    """Norm and a two-layer MLP with four times the channels, channels last."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.fc1 = nn.Linear(width, MLP_EXPAND * width)
        self.fc2 = nn.Linear(MLP_EXPAND * width, width)

    def forward(self, x: Float[Tensor, "b h w c"]) -> Float[Tensor, "b h w c"]:
        """Same shape."""
        y: Tensor = self.fc2(F.gelu(self.fc1(self.norm(x))))
        return y


class AttentionBlock(nn.Module):
    """Window attention, a depthwise 3x3 that mixes across window borders, an MLP."""

    def __init__(self, width: int, heads: int, window: int) -> None:
        super().__init__()
        self.attn = WindowAttention(width, heads, window)
        self.local_conv = conv(width, width, 3, groups=width)
        self.mlp = Mlp(width)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Same shape."""
        x = x.permute(0, 2, 3, 1)
        x = x + self.attn(x)
        x = self.local_conv(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)
        x = x + self.mlp(x)
        return x.permute(0, 3, 1, 2)


class TinyViT(nn.Module):
    """``(B, 3, s, s)`` to ``(B, 256, s/16, s/16)`` for the published stages.

    Args:
        stages: From fine to coarse.
        classes: Classes of the unused classifier in published checkpoints; 0 for none.
    """

    def __init__(self, stages: Sequence[Stage], *, classes: int = 0) -> None:
        super().__init__()
        self.stride = STEM_STRIDE * 2 ** sum(stage.halves for stage in stages[:-1])
        first, last = stages[0].width, stages[-1].width
        stem = (conv(3, first // 2, 3, stride=2), nn.GELU(), conv(first // 2, first, 3, stride=2))
        self.patch_embed = nn.Sequential(OrderedDict(seq=nn.Sequential(*stem)))
        self.layers = nn.Sequential(
            *(_layer(stage, after) for stage, after in zip(stages, [*stages[1:], None], strict=True))
        )
        self.neck = sam_neck(last)
        self.apply(_initialise)
        if classes:
            # Left over from ImageNet pre-training and kept so that published checkpoints load strictly. The forward
            # pass does not use it, so it is not trained, and export drops it.
            self.norm_head = nn.LayerNorm(last).requires_grad_(False)
            self.head = nn.Linear(last, classes).requires_grad_(False)

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 256 _ _"]:
        """Image embeddings of normalised, padded images.

        Raises:
            InputError: A side is not a multiple of the stride.
        """
        height, width = images.shape[-2:]
        if height % self.stride or width % self.stride:
            raise InputError(
                f"TinyViT takes images whose sides are multiples of {self.stride} pixels, not {height} x {width}: "
                "pad them with pipeline.ops.geometry.to_input."
            )
        y: Tensor = self.neck(self.layers(self.patch_embed(images)))
        return y

    def feature_layers(self) -> list[nn.Module]:
        """The blocks of all stages, see `pipeline.models.feature_layers`."""
        return [block for layer in self.layers for block in layer.get_submodule("blocks").children()]


def _layer(stage: Stage, after: Stage | None) -> nn.Sequential:
    parts: OrderedDict[str, nn.Module] = OrderedDict(
        blocks=nn.Sequential(
            *(
                AttentionBlock(stage.width, stage.heads, stage.window) if stage.heads else ConvBlock(stage.width)
                for _ in range(stage.depth)
            )
        )
    )
    if after:
        parts["downsample"] = downsample(stage.width, after.width, 2 if stage.halves else 1)
    return nn.Sequential(parts)


def _initialise(module: nn.Module) -> None:
    """Initialise linear maps with small normal weights, as published, and convolutions with Kaiming normal weights."""
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_in", nonlinearity="relu")
