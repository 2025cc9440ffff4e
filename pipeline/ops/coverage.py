"""Coverage of a small raster's cells by run-length encoded masks, computed from their runs without the pixels.

The raster is that of `pipeline.ops.geometry.masks_to_frame`: both interpolate bilinearly with antialiasing, which is
separable. A vertical run of a mask contributes a difference of cumulated row weights to its column, so the cost depends
on the number of runs, not on the size of the image.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import numpy as np
from jaxtyping import Float, Int, UInt8

from pipeline.ops.geometry import Size, resized

_CHUNK = 512
"""Runs of one matrix product; bounds the columns that it spans."""


@dataclass(frozen=True)
class Runs:
    """The foreground of a mask as vertical runs in column-major order; a run stays within its column."""

    size: Size
    columns: Int[np.ndarray, " r"]
    tops: Int[np.ndarray, " r"]
    """First row."""
    bottoms: Int[np.ndarray, " r"]
    """Row after the last."""

    def __len__(self) -> int:
        return len(self.columns)

    def box(self) -> tuple[float, float, float, float]:
        """The tightest box xyxy around the mask, right and lower edge exclusive.

        Raises:
            ValueError: The mask is empty.
        """
        if not len(self):
            raise ValueError("an empty mask has no box")
        top, bottom = self.tops.min(), self.bottoms.max()
        return float(self.columns[0]), float(top), float(self.columns[-1] + 1), float(bottom)


def counts_of(counts: str | bytes) -> Int[np.ndarray, " n"]:
    """Decode COCO's compressed ``counts``: alternating lengths of background and foreground, background first."""
    raw = np.frombuffer(counts.encode("ascii") if isinstance(counts, str) else counts, np.uint8).astype(np.int64) - 48
    last = np.flatnonzero((raw & 0x20) == 0)
    if not len(last):
        return np.zeros(0, np.int64)
    raw = raw[: last[-1] + 1]
    first = np.concatenate([[0], last[:-1] + 1])
    digits = last - first + 1
    shifts = 5 * (np.arange(len(raw)) - np.repeat(first, digits))
    values = np.add.reduceat((raw & 0x1F) << shifts, first)
    values -= ((raw[last] & 0x10) != 0) * (np.int64(1) << (5 * digits))  # sign extension
    # From the fourth on, a length is stored as the difference to the one before the last.
    values[1::2] = values[1::2].cumsum()
    values[2::2] = values[2::2].cumsum()
    return values


def runs_of(rle: Mapping[str, Any]) -> Runs:
    """Vertical runs of a compressed RLE.

    Raises:
        ValueError: The lengths do not sum to the mask's size.
    """
    height, width = (int(extent) for extent in rle["size"])
    counts = counts_of(rle["counts"])
    if counts.min(initial=0) < 0 or counts.sum() != height * width:
        raise ValueError(f"run lengths do not cover a mask of {height} x {width} pixels")
    edges = counts.cumsum()
    start, stop = edges[: len(edges) // 2 * 2 : 2], edges[1::2]
    some = stop > start
    start, stop = start[some], stop[some]
    first, last = start // height, (stop - 1) // height
    spans = last - first + 1
    columns = np.arange(spans.sum()) - np.repeat(spans.cumsum() - spans, spans) + np.repeat(first, spans)
    tops = np.maximum(np.repeat(start, spans) - columns * height, 0)
    bottoms = np.minimum(np.repeat(stop, spans) - columns * height, height)
    return Runs((height, width), columns, tops, bottoms)


@dataclass(frozen=True)
class Raster:
    """A ``grid`` x ``grid`` raster of the padded prompt frame of images of one size."""

    grid: int
    rows: Float[np.ndarray, "h1 m"]
    """Cumulated weights of image rows in rows of the raster; the first row is 0."""
    columns: Float[np.ndarray, "w n"]
    """Weights of image columns in columns of the raster."""

    @cached_property
    def shows_every_pixel(self) -> bool:
        """Whether a single pixel, wherever it is, leaves a coverage of at least 1 / 255 after rounding."""
        rows = np.diff(self.rows, axis=0).max(axis=1).min()
        return bool(255 * rows * self.columns.max(axis=1).min() > 0.5 + 1e-4)

    def coverage(self, runs: Runs, *, mirror: bool = False) -> UInt8[np.ndarray, "g g"]:
        """Coverage of each cell by a mask; 255 is fully covered.

        Args:
            runs: The mask, of the size that the raster is made for.
            mirror: Flip horizontally, within the image.
        """
        result = np.zeros((self.grid, self.grid), np.uint8)
        if not len(runs):
            return result
        down = self._rows_of(runs.tops, runs.bottoms)
        right = self._columns_of(runs.columns)
        total = np.zeros((down.stop - down.start, right.stop - right.start), np.float32)
        cells = self.rows[:, down]
        for begin in range(0, len(runs), _CHUNK):
            tops, bottoms, columns = (
                values[begin : begin + _CHUNK] for values in (runs.tops, runs.bottoms, runs.columns)
            )
            own = self._columns_of(columns)
            # Each run's weight in the rows, times its column's weight in the columns.
            part = (cells[bottoms] - cells[tops]).T @ self.columns[:, own][columns]
            total[:, own.start - right.start : own.stop - right.start] += part
        width = self.columns.shape[1]
        within = slice(width - right.stop, width - right.start) if mirror else right
        result[down, within] = np.rint(np.clip(total, 0, 1) * 255)[:, :: -1 if mirror else 1]
        return result

    def _rows_of(self, tops: Int[np.ndarray, " r"], bottoms: Int[np.ndarray, " r"]) -> slice:
        return _touched(int(tops.min()), int(bottoms.max()), len(self.rows) - 1, self.rows.shape[1])

    def _columns_of(self, columns: Int[np.ndarray, " r"]) -> slice:
        return _touched(int(columns[0]), int(columns[-1]) + 1, *self.columns.shape)


@lru_cache(maxsize=16)
def raster(size: Size, side: int, grid: int) -> Raster:
    """The raster of images of ``size``.

    Args:
        size: Height and width of the image.
        side: Side of the prompt frame, in pixels.
        grid: Side of the raster, in cells.
    """
    height, width = (max(1, round(extent * grid / side)) for extent in resized(size, side))
    rows = _weights(size[0], height).cumsum(axis=0)
    return Raster(
        grid,
        np.concatenate([np.zeros((1, height)), rows]).astype(np.float32),
        _weights(size[1], width).astype(np.float32),
    )


def _weights(pixels: int, cells: int) -> Float[np.ndarray, "p c"]:
    """Weight of each pixel in each cell, as PyTorch's antialiased bilinear interpolation defines it."""
    scale = pixels / cells
    support = max(scale, 1.0)
    centers = scale * (np.arange(cells) + 0.5)
    low = np.maximum((centers - support + 0.5).astype(np.int64), 0)
    high = np.minimum((centers + support + 0.5).astype(np.int64), pixels)
    at = np.arange(pixels)[:, None]
    weights = np.maximum(0.0, 1 - np.abs((at - centers + 0.5) / support)) * ((at >= low) & (at < high))
    return np.asarray(weights / weights.sum(axis=0))


def _touched(first: int, stop: int, pixels: int, cells: int) -> slice:
    """Cells whose weights may not be 0 for some of the pixels ``first`` to ``stop``."""
    scale = pixels / cells
    margin = max(scale, 1.0)
    return slice(max(0, int((first - margin) / scale - 1)), min(cells, int((stop + margin) / scale) + 2))
