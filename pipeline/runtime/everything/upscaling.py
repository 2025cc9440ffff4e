"""Upscaling of low-resolution logits to the original frame, computed only around each mask.

`pipeline.ops.geometry.masks_to_original` interpolates along each axis separately, so it is a product with one matrix
from either side. The product can be restricted to the relevant rows and columns: a pixel interpolated from logits of at
most c is at most c, since interpolation weights are positive and sum to 1.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from pipeline.ops.geometry import Size, upscaling
from pipeline.runtime.segmenter import Segmenter

_TOGETHER = 32
"""Masks computed at once on an accelerator; on a CPU each is computed alone, within its own region."""


@dataclass(frozen=True)
class _Axis:
    """One axis of the original frame."""

    weights: Float[Tensor, "extent m"]
    first: Int[np.ndarray, " extent"]
    """Per pixel, the range [first, last) of logits it is interpolated from; both are non-decreasing."""
    last: Int[np.ndarray, " extent"]

    def around(self, start: int, stop: int) -> tuple[slice, slice]:
        """The pixels that logits [start, stop) contribute to, and all logits that these pixels need."""
        low = int(np.searchsorted(self.last, start, side="right"))
        high = int(np.searchsorted(self.first, stop, side="left"))
        return slice(low, high), slice(int(self.first[low]), int(self.last[high - 1])) if high > low else slice(0, 0)


class Upscaling:
    """Upscales low-resolution logits to images of one size.

    Args:
        size: Height and width of the image.
        segmenter: Model whose frames are used.
    """

    def __init__(self, size: Size, segmenter: Segmenter) -> None:
        self.size = size
        matrices = upscaling(size, segmenter.image_size, 4 * segmenter.embedding_size)
        self._axes = {torch.device("cpu"): tuple(_axis(matrix) for matrix in matrices)}

    def regions(
        self, logits: Float[Tensor, "n m m"], above: float
    ) -> Iterator[tuple[slice, slice, slice, Float[Tensor, "k h w"]]]:
        """Upscale a few masks at a time, restricted to where one may exceed ``above``.

        Yields:
            The masks' slice, and rows, columns and values of the region in the original frame; the region is empty if
            no mask exceeds ``above``.
        """
        step = 1 if logits.device.type == "cpu" else _TOGETHER
        axes = self._on(logits.device)
        occupied = [(logits.amax(axis) > above).cpu().numpy() for axis in (2, 1)]
        for start in range(0, len(logits), step):
            part = slice(start, start + step)
            inside = [np.flatnonzero(axis[part].any(axis=0)) for axis in occupied]
            if not len(inside[0]):
                yield part, slice(0, 0), slice(0, 0), logits.new_zeros(len(logits[part]), 0, 0)
                continue
            (rows, v), (columns, u) = (
                axis.around(int(indices[0]), int(indices[-1]) + 1) for axis, indices in zip(axes, inside, strict=True)
            )
            across = logits[part, v, u] @ axes[1].weights[columns, u].T
            yield part, rows, columns, axes[0].weights[rows, v] @ across

    def _on(self, device: torch.device) -> tuple[_Axis, ...]:
        """Rows and columns with their weights on ``device``, copied there once."""
        axes = self._axes.get(device)
        if axes is None:
            axes = tuple(replace(axis, weights=axis.weights.to(device)) for axis in self._axes[torch.device("cpu")])
            self._axes[device] = axes
        return axes

    def masks(self, logits: Float[Tensor, "n m m"]) -> Bool[np.ndarray, "n h w"]:
        """Masks in the original frame."""
        masks = np.zeros((len(logits), *self.size), dtype=bool)
        for part, rows, columns, values in self.regions(logits, 0.0):
            masks[part, rows, columns] = (values > 0).cpu().numpy()
        return masks

    def measure(
        self, logits: Float[Tensor, "n m m"], offset: float
    ) -> tuple[Float[Tensor, " n"], Int[Tensor, "n 4"], Bool[Tensor, " n"]]:
        """Measure stability and boxes at the resolution of the original frame.

        Args:
            logits: Low-resolution logits.
            offset: Distance of the stability score's cutoffs from 0.

        Returns:
            Stability, the IoU of the masks thresholded at ``offset`` and at ``-offset``; boxes xyxy of pixel centres,
            as in segment-anything; and whether a mask is nonempty. Values of empty masks are 0.
        """
        n, device = len(logits), logits.device
        stability, boxes = torch.zeros(n, device=device), torch.zeros(n, 4, dtype=torch.long, device=device)
        nonempty = torch.zeros(n, dtype=torch.bool, device=device)
        for part, rows, columns, values in self.regions(logits, -offset):
            if not values.numel():
                continue
            scratch = torch.empty_like(values)
            # Summing comparisons written as floats is three times faster than counting booleans.
            inner, outer = (
                torch.gt(values, c, out=scratch).sum(-1).sum(-1, dtype=torch.float64) for c in (offset, -offset)
            )
            stability[part] = (inner / outer.clamp(min=1)).float()
            down, across = values.amax(2) > 0, values.amax(1) > 0
            nonempty[part] = down.any(1)
            edges = [*_edges(across, columns.start), *_edges(down, rows.start)]
            boxes[part] = torch.stack([edges[i] for i in (0, 2, 1, 3)], dim=1) * nonempty[part, None]
        return stability * nonempty, boxes, nonempty


def _edges(occupied: Bool[Tensor, "k n"], start: int) -> tuple[Int[Tensor, " k"], Int[Tensor, " k"]]:
    """First and last occupied position along an axis that begins at ``start``."""
    marks = occupied.to(torch.uint8)
    return start + marks.argmax(1), start + occupied.shape[1] - 1 - marks.flip(1).argmax(1)


def _axis(weights: Float[Tensor, "extent m"]) -> _Axis:
    nonzero = (weights != 0).numpy()
    return _Axis(weights, nonzero.argmax(axis=1), nonzero.shape[1] - nonzero[:, ::-1].argmax(axis=1))
