"""The bundled teacher: a small SAM with 256-pixel input that this project trains on procedural scenes.

Convolutions down to 1/8 resolution resolve edges, attention over the 16 x 16 grid resolves objects. Convolutions are
dense 3 x 3 and attention is plain, because a CPU's matrix units run these best. The decoder and prompt encoder are
SAM's.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.models.published import LayerNorm2d
from pipeline.models.sam import EMBEDDING_CHANNELS, Sam, assemble

IMAGE_SIZE, EMBEDDING_SIZE = 256, 16


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
