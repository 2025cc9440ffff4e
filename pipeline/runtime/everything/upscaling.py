"""Low-resolution logits in the original frame, computed only where a mask is.

`pipeline.ops.geometry.masks_to_original` interpolates twice, along each axis alone; so it is a product with one
matrix from either side. A product can be cut to the rows and columns that matter: a pixel between logits of at most c
is at most c, since interpolation weights are positive and add up to 1.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pipeline.ops.geometry import Size, upscaling
from pipeline.runtime.segmenter import Segmenter

_TOGETHER = 32
"""Masks computed at once on an accelerator; on a processor each is cut to its own region."""


@dataclass(frozen=True)
class _Axis:
    """One axis of the original frame."""

    weights: Float[Tensor, "extent m"]
    first: Int[np.ndarray, " extent"]
    """Of each pixel, the first logit that it is interpolated from, and behind the last; neither ever falls."""
    last: Int[np.ndarray, " extent"]

    def around(self, start: int, stop: int) -> tuple[slice, slice]:
        """The pixels that the logits from ``start`` to before ``stop`` reach, and all logits that these need."""
        low = int(np.searchsorted(self.last, start, side="right"))
        high = int(np.searchsorted(self.first, stop, side="left"))
        return slice(low, high), slice(int(self.first[low]), int(self.last[high - 1])) if high > low else slice(0, 0)


class Upscaling:
    """Brings logits of one frame to an image of one size.

    Args:
        size: Height and width of the image.
        segmenter: Whose frames are meant.
    """

    def __init__(self, size: Size, segmenter: Segmenter) -> None:
        self.size = size
        matrices = upscaling(size, segmenter.image_size, 4 * segmenter.embedding_size)
        self._rows, self._columns = (_axis(matrix) for matrix in matrices)

    def regions(
        self, logits: Float[Tensor, "n m m"], above: float
    ) -> Iterator[tuple[slice, slice, slice, Float[Tensor, "k h w"]]]:
        """Masks in order, a few at once: which, and the rows, columns and values outside which none exceeds ``above``.

        Rows and columns are those of the original frame; they are empty where no mask exceeds it.
        """
        step = 1 if logits.device.type == "cpu" else _TOGETHER
        held = [(logits.amax(axis) > above).cpu().numpy() for axis in (2, 1)]
        for start in range(0, len(logits), step):
            part = slice(start, start + step)
            inside = [np.flatnonzero(axis[part].any(axis=0)) for axis in held]
            if not len(inside[0]):
                yield part, slice(0, 0), slice(0, 0), logits.new_zeros(len(logits[part]), 0, 0)
                continue
            (rows, v), (columns, u) = (
                axis.around(int(found[0]), int(found[-1]) + 1)
                for axis, found in zip((self._rows, self._columns), inside, strict=True)
            )
            across = logits[part, v, u] @ self._columns.weights[columns, u].T.to(logits.device)
            values = self._rows.weights[rows, v].to(logits.device) @ across
            yield part, rows, columns, values

    def masks(self, logits: Float[Tensor, "n m m"]) -> Bool[np.ndarray, "n h w"]:
        """Masks in the original frame."""
        found = np.zeros((len(logits), *self.size), dtype=bool)
        for part, rows, columns, values in self.regions(logits, 0.0):
            found[part, rows, columns] = (values > 0).cpu().numpy()
        return found

    def measure(
        self, logits: Float[Tensor, "n m m"], offset: float
    ) -> tuple[Float[Tensor, " n"], Int[Tensor, "n 4"], Bool[Tensor, " n"]]:
        """What decides about masks, at the resolution of the original frame.

        Args:
            logits: Low-resolution logits.
            offset: Distance of the stability score's cutoffs from 0.

        Returns:
            Stability, the IoU of the mask cut off at ``offset`` with the one cut off at ``-offset``; boxes xyxy of the
            pixels' centres, as segment-anything has them; and whether a mask has any pixel: if not, the others are 0.
        """
        n, device = len(logits), logits.device
        stability, boxes = torch.zeros(n, device=device), torch.zeros(n, 4, dtype=torch.long, device=device)
        seen = torch.zeros(n, dtype=torch.bool, device=device)
        for part, rows, columns, values in self.regions(logits, -offset):
            if not values.numel():
                continue
            scratch = torch.empty_like(values)
            # Comparing into numbers and adding these up is three times faster than counting booleans.
            inner, outer = (
                torch.gt(values, c, out=scratch).sum(-1).sum(-1, dtype=torch.float64) for c in (offset, -offset)
            )
            stability[part] = (inner / outer.clamp(min=1)).float()
            down, across = values.amax(2) > 0, values.amax(1) > 0
            seen[part] = down.any(1)
            edges = [*_edges(across, columns.start), *_edges(down, rows.start)]
            boxes[part] = torch.stack([edges[i] for i in (0, 2, 1, 3)], dim=1) * seen[part, None]
        return stability * seen, boxes, seen


def _edges(held: Bool[Tensor, "k n"], start: int) -> tuple[Int[Tensor, " k"], Int[Tensor, " k"]]:
    """First and last place along an axis that begins at ``start``."""
    marks = held.to(torch.uint8)
    return start + marks.argmax(1), start + held.shape[1] - 1 - marks.flip(1).argmax(1)


def _axis(weights: Float[Tensor, "extent m"]) -> _Axis:
    held = (weights != 0).numpy()
    return _Axis(weights, held.argmax(axis=1), held.shape[1] - held[:, ::-1].argmax(axis=1))
