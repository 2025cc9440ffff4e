"""A prompt encoder that also draws boxes and clicks as maps, beside segment-anything's sparse tokens.

SAM learns from a billion masks where a token's position lies among the image's cells. A small model trained for hours
learns it faster from maps, as interactive segmentation does (Sofiiuk et al. 2021, "Reviving Iterative Training with
Mask Guidance": clicks as discs). The maps have the resolution of the decoder's masks and are embedded per image cell.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.models.published import PromptEncoder
from pipeline.ops.point_labels import BACKGROUND, BOX_CORNERS, FOREGROUND

MASK_PX_PER_CELL = 4
CLICK_RADII_PX = (5.0, 20.0, 80.0)
"""Standard deviations of a click's bells, in pixels of the prompt frame."""
WHOLE = slice(None), slice(None)
MAPS = 7 + 2 * len(CLICK_RADII_PX)
HIDDEN = 128


class DensePromptEncoder(PromptEncoder):  # type: ignore[misc]  # segment-anything has no types
    """segment-anything's prompt encoder, and an embedding of boxes and clicks for each image cell.

    Args: those of segment-anything's ``PromptEncoder``.
    """

    window = WHOLE
    """Rows and columns of cells that are embedded; a part of them in training on windows."""

    def __init__(
        self,
        embed_dim: int,
        image_embedding_size: tuple[int, int],
        input_image_size: tuple[int, int],
        mask_in_chans: int,
    ) -> None:
        super().__init__(embed_dim, image_embedding_size, input_image_size, mask_in_chans)
        last = nn.Linear(HIDDEN, embed_dim)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.maps_embedding = nn.Sequential(nn.Linear(MAPS * MASK_PX_PER_CELL**2, HIDDEN), nn.GELU(), last)

    def embed_maps(
        self, coords: Float[Tensor, "n points 2"], labels: Float[Tensor, "n points"]
    ) -> Float[Tensor, "n k c"]:
        """Embed prompts for each cell of the image embedding, row by row.

        Args:
            coords: x and y in pixels of the prompt frame.
            labels: As for `pipeline.models.decoder.decode`.
        """
        maps = prompt_maps(coords, labels, self._pixel_centers(1, coords.device), self._pixel_centers(0, coords.device))
        cells = maps.unflatten(-1, (-1, MASK_PX_PER_CELL)).unflatten(2, (-1, MASK_PX_PER_CELL))
        folded = cells.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)
        embedding: Tensor = self.maps_embedding(folded)
        return embedding

    def _pixel_centers(self, axis: int, device: torch.device) -> Float[Tensor, " pixels"]:
        """Positions of the mask pixels along y (axis 0) or x (1), in pixels of the prompt frame."""
        cells, extent = self.image_embedding_size[axis], self.input_image_size[axis]
        pixels = torch.arange(cells * MASK_PX_PER_CELL, device=device).unflatten(0, (cells, MASK_PX_PER_CELL))
        return (pixels[self.window[axis]].flatten() + 0.5) * (extent / cells / MASK_PX_PER_CELL)


def prompt_maps(
    coords: Float[Tensor, "n points 2"],
    labels: Float[Tensor, "n points"],
    across: Float[Tensor, " w"],
    down: Float[Tensor, " h"],
) -> Float[Tensor, "n maps h w"]:
    """Draw each prompt: distance to its box's border at two scales, the ellipse in it, place in it, bells at clicks."""
    first, last = (((labels == corner).to(coords.dtype)[..., None] * coords).sum(1) for corner in BOX_CORNERS)
    has_box = (labels == BOX_CORNERS[0]).to(coords.dtype).sum(1)[:, None, None].clamp(max=1)
    x, y = across[None, None, :], down[None, :, None]
    x1, y1, x2, y2 = (edge[:, None, None] for edge in (*first.unbind(1), *last.unbind(1)))
    distance = torch.minimum(torch.minimum(x - x1, x2 - x), torch.minimum(y - y1, y2 - y))
    u = (2 * x - x1 - x2) / (x2 - x1).abs().clamp(min=1)
    v = (2 * y - y1 - y2) / (y2 - y1).abs().clamp(min=1)
    ellipse = 1 - u * u - v * v
    u, v = u.expand_as(ellipse), v.expand_as(ellipse)
    box = [(distance / 4).clamp(-1, 1), (distance / 32).clamp(-1, 1), ellipse.clamp(-1, 1), u.clamp(-1, 1)]
    box += [v.clamp(-1, 1), torch.ones_like(ellipse), (distance > 0).to(ellipse.dtype)]
    squared = (across - coords[..., :1])[:, :, None, :] ** 2 + (down - coords[..., 1:])[..., None] ** 2
    clicks = []
    for label in (FOREGROUND, BACKGROUND):
        chosen = (labels == label).to(coords.dtype)[..., None, None]
        for radius in CLICK_RADII_PX:
            clicks.append((chosen * (squared * (-0.5 / radius**2)).exp()).sum(1).clamp(max=1))
    return torch.stack([*(has_box * b for b in box), *clicks], dim=1)
