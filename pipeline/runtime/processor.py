"""For runtimes on processors: how much they take at a time, and for PyTorch pages that are not given back."""

import ctypes
import os
import platform
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

CELLS_AT_ONCE = 2 * 64 * 64
"""Cells of the embedding, times prompts, that are decoded in one call: 8 MiB a tensor. Larger ones leave the caches
between one operator and the next, and reading them takes as long as the arithmetic."""
PIXELS_AT_ONCE = 512 * 512
"""Pixels of the images that are encoded in one call, for the same reason: a small student's first maps of a few images
fit where those of one image at full size do."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT_BYTES, _ADAPTED_BYTES = 1 << 30, 32 << 20

Encode = Callable[[Float[Tensor, "b 3 s s"]], Float[Tensor, "b 256 g g"]]
Decode = Callable[
    [Float[Tensor, "1 256 g g"], Float[Tensor, "p n 2"], Float[Tensor, "p n"], Float[Tensor, "p 1 m m"] | None],
    tuple[Float[Tensor, "p 4 m m"], Float[Tensor, "p 4"]],
]


def encode_by_parts(encode: Encode, images: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b 256 g g"]:
    """Encode a few images at a time: as many as `PIXELS_AT_ONCE` allows, one of 512 pixels or more a side."""
    at_once = max(1, PIXELS_AT_ONCE // images.shape[-1] ** 2)
    parts = [encode(part) for part in images.split(at_once)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def decode_by_parts(
    decode: Decode,
    image_embedding: Float[Tensor, "1 256 g g"],
    point_coords: Float[Tensor, "p n 2"],
    point_labels: Float[Tensor, "p n"],
    mask_input: Float[Tensor, "p 1 m m"] | None,
) -> tuple[Float[Tensor, "p 4 m m"], Float[Tensor, "p 4"]]:
    """Decode a few prompts at a time: as many as `CELLS_AT_ONCE` allows, two at full size."""
    grid = image_embedding.shape[-1]
    if len(point_coords) == 0:
        return image_embedding.new_zeros(0, 4, 4 * grid, 4 * grid), image_embedding.new_zeros(0, 4)
    at_once = max(1, CELLS_AT_ONCE // grid**2)
    coords, labels = point_coords.split(at_once), point_labels.split(at_once)
    masks = [None] * len(coords) if mask_input is None else mask_input.split(at_once)
    parts = [decode(image_embedding, *part) for part in zip(coords, labels, masks, strict=True)]
    if len(parts) == 1:
        return parts[0]
    return torch.cat([logits for logits, _ in parts]), torch.cat([ious for _, ious in parts])


def keep_pages(keep: bool = True) -> None:
    """Let this process keep up to 1 GiB of memory that it has freed, in each arena, where its C library is glibc.

    By default tensors of some MiB go back to the system whenever they are freed; for the next one it clears new pages,
    which takes as long as computing what goes there. Limits that the environment sets (``MALLOC_TRIM_THRESHOLD_`` and
    the like) stay as they are.

    Args:
        keep: False takes the largest limits that glibc would come to by itself.
    """
    if platform.libc_ver()[0] != "glibc" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    library = ctypes.CDLL(None)
    # Releases before 2.35 refuse more than 32 MiB here; setting the other alone would hold this one at 128 KiB.
    if not (keep and library.mallopt(_MMAP_THRESHOLD, _KEPT_BYTES)):
        library.mallopt(_MMAP_THRESHOLD, _ADAPTED_BYTES)
    library.mallopt(_TRIM_THRESHOLD, _KEPT_BYTES if keep else 2 * _ADAPTED_BYTES)
