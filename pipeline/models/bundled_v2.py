"""The next bundled teacher: masks of 128 x 128, and an encoder that starts from ImageNet weights.

The input has 512 pixels, the embedding 32 x 32 cells. The trunk is EfficientNet-Lite0; the decoder and prompt encoder
are SAM's.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.models.dense_prompts import DensePromptEncoder
from pipeline.models.efficientnet_lite import CHANNELS, EfficientNetLite
from pipeline.models.neck import ChannelNorm
from pipeline.models.sam import EMBEDDING_CHANNELS, Sam, assemble

IMAGE_SIZE, EMBEDDING_SIZE = 512, 32


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
        waves = position_waves(EMBEDDING_SIZE, octaves=6)
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
        PyramidEncoder(),
        image_size=IMAGE_SIZE,
        input_size=IMAGE_SIZE,
        embedding_size=EMBEDDING_SIZE,
        prompt_encoder=DensePromptEncoder,
    )
