"""The bundled teacher: a small SAM with 256-pixel input that this project trains on procedural scenes.

Convolutions down to 1/8 resolution resolve edges, attention over the 16 x 16 grid resolves objects. Convolutions are
dense 3 x 3 and attention is plain, because a CPU's matrix units run these best. The decoder and prompt encoder are
SAM's.

`bundled_v2` has an input of 512 pixels, an embedding of 32 x 32 and thus masks of 128 x 128, and an encoder that can
start from ImageNet weights.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.models.efficientnet_lite import CHANNELS, EfficientNetLite
from pipeline.models.neck import ChannelNorm
from pipeline.models.published import LayerNorm2d
from pipeline.models.sam import EMBEDDING_CHANNELS, Sam, assemble

IMAGE_SIZE, EMBEDDING_SIZE = 256, 16
IMAGE_SIZE_V2, EMBEDDING_SIZE_V2 = 512, 32


class ConvBlock(nn.Module):
    """Residual 3 x 3 expansion and 1 x 1 projection, batch-normalised."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.spatial_norm = nn.BatchNorm2d(channels)
        self.point = nn.Conv2d(channels, channels, 1, bias=False)
        self.point_norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.point_norm.weight)

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Same shape."""
        return x + self.point_norm(self.point(F.gelu(self.spatial_norm(self.spatial(x)))))


class Downsample(nn.Sequential):
    """3 x 3 convolution of stride 2, batch norm, GELU."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.GELU()
        )


class AttentionBlock(nn.Module):
    """Pre-norm self-attention with a depthwise 3 x 3 before it, and an MLP, on a square grid of tokens."""

    def __init__(self, channels: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.local = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.norm1 = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Same shape."""
        x = x + self.local(x)
        size = x.shape[-2:]
        tokens = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(self.norm1(tokens)).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        attended = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        tokens = tokens + self.proj(attended)
        tokens = tokens + self.mlp(self.norm2(tokens))
        return tokens.transpose(1, 2).unflatten(2, size)


class BundledEncoder(nn.Module):
    """``(B, 3, 256, 256)`` to ``(B, 256, 16, 16)``."""

    def __init__(self, widths: tuple[int, int, int] = (32, 64, 128), depth: int = 5, heads: int = 8) -> None:
        super().__init__()
        first, second, third = widths
        self.stem = nn.Sequential(Downsample(3, first), Downsample(first, second))
        self.stage1 = nn.Sequential(ConvBlock(second), ConvBlock(second))
        self.down1 = Downsample(second, third)
        self.stage2 = nn.Sequential(ConvBlock(third), ConvBlock(third))
        self.down2 = Downsample(third, EMBEDDING_CHANNELS)
        self.position = nn.Parameter(torch.zeros(1, EMBEDDING_CHANNELS, EMBEDDING_SIZE, EMBEDDING_SIZE))
        nn.init.trunc_normal_(self.position, std=0.02)
        self.blocks = nn.Sequential(*(AttentionBlock(EMBEDDING_CHANNELS, heads) for _ in range(depth)))
        self.neck = nn.Sequential(
            nn.Conv2d(EMBEDDING_CHANNELS, EMBEDDING_CHANNELS, 1, bias=False), LayerNorm2d(EMBEDDING_CHANNELS)
        )

    def forward(self, images: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b 256 g g"]:
        """Normalised, padded pixels to image embeddings."""
        x = self.stage2(self.down1(self.stage1(self.stem(images))))
        return self.neck(self.blocks(self.down2(x) + self.position))


def bundled() -> Sam:
    """The bundled teacher's architecture with fresh weights."""
    return assemble(BundledEncoder(), image_size=IMAGE_SIZE, input_size=IMAGE_SIZE, embedding_size=EMBEDDING_SIZE)


class MixingBlock(nn.Module):
    """Depthwise 5 x 5 and an MLP per position, each with a shortcut."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.spatial = nn.Conv2d(channels, channels, 5, padding=2, groups=channels)
        self.norm = ChannelNorm(channels)
        self.mlp = nn.Sequential(nn.Conv2d(channels, 2 * channels, 1), nn.GELU(), nn.Conv2d(2 * channels, channels, 1))

    def forward(self, x: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        """Same shape."""
        x = x + self.spatial(x)
        mixed: Tensor = self.mlp(self.norm(x))
        return x + mixed


def position_waves(size: int, octaves: int) -> Float[Tensor, "1 c g g"]:
    """Sines and cosines of the cell centres' x and y, from half a period to ``2 ** (octaves - 2)`` over the map."""
    centers = (torch.arange(size) + 0.5) / size
    phases = torch.pi * centers * 2.0 ** torch.arange(octaves)[:, None]
    waves = torch.cat([phases.sin(), phases.cos()])
    across, down = waves[:, None].expand(-1, size, -1), waves[:, :, None].expand(-1, -1, size)
    return torch.cat([across, down])[None]


class PyramidEncoder(nn.Module):
    """``(B, 3, 512, 512)`` to ``(B, 256, 32, 32)``: all levels of EfficientNet-Lite0, summed at stride 16.

    Finer maps are folded into channels (space to depth), so that a cell keeps the detail its 4 x 4 mask pixels need.
    Positions are added, because SAM's decoder gives them only to its attention: within a cell, a mask's border depends
    on where the cell lies relative to the prompt.
    """

    waves: Tensor

    def __init__(self, depth: int = 2) -> None:
        super().__init__()
        self.trunk = EfficientNetLite()
        quarter, eighth, sixteenth, coarse = CHANNELS
        folded = (16 * quarter, 4 * eighth, sixteenth, coarse)
        self.laterals = nn.ModuleList(nn.Conv2d(channels, EMBEDDING_CHANNELS, 1) for channels in folded)
        waves = position_waves(EMBEDDING_SIZE_V2, octaves=6)
        self.register_buffer("waves", waves, persistent=False)
        self.position = nn.Conv2d(waves.shape[1], EMBEDDING_CHANNELS, 1, bias=False)
        nn.init.zeros_(self.position.weight)
        self.merged_norm = ChannelNorm(EMBEDDING_CHANNELS)
        self.blocks = nn.Sequential(*(MixingBlock(EMBEDDING_CHANNELS) for _ in range(depth)))
        self.norm = ChannelNorm(EMBEDDING_CHANNELS)

    def forward(self, images: Float[Tensor, "b 3 s s"], column: int = 0, row: int = 0) -> Float[Tensor, "b 256 g g"]:
        """Normalised, padded pixels to image embeddings.

        Args:
            images: Whole frames, or in training windows of them.
            column: First column of the window, in cells.
            row: First row of the window, in cells.
        """
        quarter, eighth, sixteenth, coarse = self.trunk(images)
        folded = (F.pixel_unshuffle(quarter, 4), F.pixel_unshuffle(eighth, 2), sixteenth, coarse)
        fine, detail, same, context = (lateral(x) for lateral, x in zip(self.laterals, folded, strict=True))
        context = F.interpolate(context, scale_factor=2, mode="bilinear", align_corners=False)
        height, width = same.shape[-2:]
        position = self.position(self.waves[..., row : row + height, column : column + width])
        x: Tensor = self.norm(self.blocks(self.merged_norm(fine + detail + same + context) + position))
        return x


def bundled_v2() -> Sam:
    """The architecture of the next bundled teacher with fresh weights."""
    return assemble(
        PyramidEncoder(), image_size=IMAGE_SIZE_V2, input_size=IMAGE_SIZE_V2, embedding_size=EMBEDDING_SIZE_V2
    )
