"""For runtimes on CPUs: batch sizes per call, and memory that PyTorch does not return to the system."""

import ctypes
import os
import platform
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

CELLS_AT_ONCE = 2 * 64 * 64
"""Embedding cells times prompts decoded per call: 8 MiB per tensor. Larger tensors do not stay in the caches between
operators, and reading them takes as long as the arithmetic."""
PIXELS_AT_ONCE = 512 * 512
"""Image pixels encoded per call, for the same reason: a small student's first feature maps of several images fit where
those of one full-size image do."""
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT_BYTES, _ADAPTED_BYTES = 1 << 30, 32 << 20

Encode = Callable[[Float[Tensor, "b 3 s s"]], Float[Tensor, "b 256 g g"]]
Decode = Callable[
    [Float[Tensor, "1 256 g g"], Float[Tensor, "p n 2"], Float[Tensor, "p n"], Float[Tensor, "p 1 m m"] | None],
    tuple[Float[Tensor, "p 4 m m"], Float[Tensor, "p 4"]],
]


def encode_by_parts(encode: Encode, images: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b 256 g g"]:
    """Encode as many images at a time as `PIXELS_AT_ONCE` allows: one, if its side is 512 pixels or more."""
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
    """Decode as many prompts at a time as `CELLS_AT_ONCE` allows: two at full size."""
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
    """Let this process retain up to 1 GiB of freed memory per arena, if its C library is glibc.

    By default, freed tensors of some MiB are returned to the system, which clears new pages for the next tensor; that
    takes as long as computing its values. Limits set by the environment (``MALLOC_TRIM_THRESHOLD_`` and the like) are
    respected.

    Args:
        keep: False sets the largest limits that glibc would adapt to on its own.
    """
    if platform.libc_ver()[0] != "glibc" or any(name.startswith("MALLOC_") for name in os.environ):
        return
    library = ctypes.CDLL(None)
    # Releases before 2.35 refuse more than 32 MiB here; setting only the other would fix this one at 128 KiB.
    if not (keep and library.mallopt(_MMAP_THRESHOLD, _KEPT_BYTES)):
        library.mallopt(_MMAP_THRESHOLD, _ADAPTED_BYTES)
    library.mallopt(_TRIM_THRESHOLD, _KEPT_BYTES if keep else 2 * _ADAPTED_BYTES)
