"""What runtimes on processors share: how many prompts they decode at a time, and pages that are not given back."""

import ctypes
import platform
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

CELLS_AT_ONCE = 2 * 64 * 64
"""Cells of the embedding, times prompts, that are decoded in one call: 8 MiB a tensor. Larger ones leave the caches
between one operator and the next, and reading them takes as long as the arithmetic."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT_BYTES, _ADAPTED_BYTES = 1 << 30, 32 << 20

Decode = Callable[
    [Float[Tensor, "1 256 g g"], Float[Tensor, "p n 2"], Float[Tensor, "p n"], Float[Tensor, "p 1 m m"] | None],
    tuple[Float[Tensor, "p 4 m m"], Float[Tensor, "p 4"]],
]


def by_parts(
    decode: Decode,
    image_embedding: Float[Tensor, "1 256 g g"],
    point_coords: Float[Tensor, "p n 2"],
    point_labels: Float[Tensor, "p n"],
    mask_input: Float[Tensor, "p 1 m m"] | None,
) -> tuple[Float[Tensor, "p 4 m m"], Float[Tensor, "p 4"]]:
    """Decode a few prompts at a time: as many as `CELLS_AT_ONCE` allows, two at full size."""
    at_once = max(1, CELLS_AT_ONCE // image_embedding.shape[-1] ** 2)
    if len(point_coords) <= at_once:
        return decode(image_embedding, point_coords, point_labels, mask_input)
    masks = [None] * len(point_coords) if mask_input is None else mask_input.split(at_once)
    parts = zip(point_coords.split(at_once), point_labels.split(at_once), masks, strict=False)
    logits, ious = zip(*(decode(image_embedding, *part) for part in parts), strict=True)
    return torch.cat(logits), torch.cat(ious)


def keep_pages(keep: bool = True) -> None:
    """Let this process keep up to 1 GiB of memory that it has freed, where its C library is glibc.

    By default tensors of some MiB go back to the system whenever they are freed; for the next one it clears new pages,
    which takes as long as computing what goes there.

    Args:
        keep: False goes back to the largest limits that glibc adapts to by itself.
    """
    if platform.libc_ver()[0] == "glibc":
        library = ctypes.CDLL(None)
        library.mallopt(_MMAP_THRESHOLD, _KEPT_BYTES if keep else _ADAPTED_BYTES)
        library.mallopt(_TRIM_THRESHOLD, _KEPT_BYTES if keep else 2 * _ADAPTED_BYTES)
