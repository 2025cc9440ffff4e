"""The instances of an image on the mask decoder's raster, each decoded when it is first used."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from pipeline.core.errors import InputError
from pipeline.data.shards import REMEDY
from pipeline.ops import coverage
from pipeline.ops.coverage import Runs
from pipeline.ops.geometry import Size, boxes_to_frame


class Lazy:
    """An array whose elements along the first axis are computed when first used, and then kept.

    Args:
        shape: Shape of the array.
        dtype: Its type.
        element: Computes one element.
    """

    def __init__(self, shape: tuple[int, ...], dtype: type[np.generic], element: Callable[[int], np.ndarray]) -> None:
        self.shape, self.dtype, self._element = shape, np.dtype(dtype), element
        self._computed = dict[int, np.ndarray]()

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: int) -> np.ndarray:
        if index not in self._computed:
            self._computed[index] = self._element(range(len(self))[index])
        return self._computed[index]

    def all(self) -> np.ndarray:
        """All elements, stacked."""
        return np.array([self[index] for index in range(len(self))], self.dtype).reshape(self.shape)


@dataclass(frozen=True)
class Instances:
    """Masks and boxes of one image."""

    coverages: Lazy | UInt8[np.ndarray, "n m m"]
    """Coverage of each raster cell; 255 is fully covered."""
    boxes: Lazy | Float[np.ndarray, "n 4"]
    """xyxy in the prompt frame."""


def instances_of(
    annotations: Sequence[dict[str, Any]], size: Size, image_size: int, grid: int, *, mirror: bool = False
) -> Instances:
    """Masks and boxes of an image, without instances too small to show on the raster.

    Which instances show is known before any is decoded, except in images so large that a pixel may leave nothing.

    Args:
        annotations: SA-1B's records.
        size: Height and width of the image.
        image_size: Side of the prompt frame, in pixels.
        grid: Side of the decoder's raster.
        mirror: Flip horizontally.

    Raises:
        InputError: An annotation is damaged or of another size.
    """
    raster = coverage.raster(size, image_size, grid)

    def runs(index: int) -> Runs:
        segmentation = annotations[index]["segmentation"]
        if tuple(segmentation["size"]) != tuple(size):
            raise InputError(f"a mask of {segmentation['size']} pixels is not of its image's size {size}. {REMEDY}")
        try:
            return coverage.runs_of(segmentation)
        except ValueError as error:
            raise InputError(f"a mask is damaged: {error}. {REMEDY}") from None

    decoded = dict[int, Runs]()

    def runs_once(index: int) -> Runs:
        if index not in decoded:
            decoded[index] = runs(index)
        return decoded[index]

    def shows(index: int) -> bool:
        if raster.shows_every_pixel:
            return not _empty(annotations[index]["segmentation"]["counts"])
        return bool(raster.coverage(runs_once(index)).any())

    shown = [index for index in range(len(annotations)) if shows(index)]

    def box(index: int) -> Float[np.ndarray, "4"]:
        x0, y0, x1, y1 = runs_once(shown[index]).box()
        if mirror:
            x0, x1 = size[1] - x1, size[1] - x0
        return boxes_to_frame(np.array([x0, y0, x1, y1]), size, image_size)

    return Instances(
        Lazy((len(shown), grid, grid), np.uint8, lambda index: raster.coverage(runs_once(shown[index]), mirror=mirror)),
        Lazy((len(shown), 4), np.float32, box),
    )


def _empty(counts: str) -> bool:
    """Whether a compressed RLE has no foreground; the first length is of background."""
    return not coverage.counts_of(counts[:64])[1::2].any() and not coverage.counts_of(counts)[1::2].any()
