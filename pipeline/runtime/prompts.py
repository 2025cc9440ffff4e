"""Validation of user prompts and conversion to the decoder's form and frame."""

from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from numpy.typing import ArrayLike
from torch import Tensor

from pipeline.core.errors import InputError
from pipeline.ops.geometry import Size, boxes_to_frame, points_to_frame
from pipeline.ops.point_labels import BACKGROUND, BOX_CORNERS, FOREGROUND, PADDING
from pipeline.runtime.segmenter import Segmenter

_CLICK_LABELS = (FOREGROUND, BACKGROUND, PADDING)


@dataclass(frozen=True)
class Prompts:
    """P prompts for `Segmenter.decode`."""

    point_coords: Float[Tensor, "p n 2"]
    """Clicks, then either a box's two corners or segment-anything's padding point; prompt frame."""
    point_labels: Float[Tensor, "p n"]
    mask_input: Float[Tensor, "p 1 m m"] | None
    batched: bool
    """Whether the arguments had a leading axis."""


def prepare(
    point_coords: ArrayLike | None,
    point_labels: ArrayLike | None,
    box: ArrayLike | None,
    mask_input: ArrayLike | None,
    *,
    size: Size,
    segmenter: Segmenter,
    batched: bool = False,
) -> Prompts:
    """Check prompts in the original frame of an image and convert them to the prompt frame.

    Args:
        point_coords: ``(N, 2)`` or ``(P, N, 2)``.
        point_labels: ``(N,)`` or ``(P, N)``.
        box: ``(4,)``, ``(1, 4)`` or ``(P, 4)``.
        mask_input: ``(1, m, m)`` or ``(P, 1, m, m)``.
        size: Height and width of the image.
        segmenter: Model whose frames are used.
        batched: Every argument has a leading axis.

    Raises:
        InputError: A shape or value is wrong, or the numbers of prompts differ.
    """
    side, grid = segmenter.image_size, 4 * segmenter.embedding_size
    if (point_coords is None) != (point_labels is None):
        raise InputError("point_coords and point_labels go together: give both or neither.")
    coords = None if point_coords is None else _numbers("point_coords", point_coords, "(N, 2) or (P, N, 2)", (2, 3))
    labels = None if point_labels is None else _numbers("point_labels", point_labels, "(N,) or (P, N)", (1, 2))
    boxes = None if box is None else _numbers("box", box, "(4,) or (P, 4)", (1, 2))
    mask = None if mask_input is None else _numbers("mask_input", mask_input, "(1, m, m) or (P, 1, m, m)", (3, 4))
    batched = batched or any((
        coords is not None and coords.ndim == 3,
        boxes is not None and boxes.ndim == 2 and len(boxes) != 1,
        mask is not None and mask.ndim == 4,
    ))  # fmt: skip
    if coords is not None and labels is not None:
        coords, labels = _clicks(coords, labels)
    if boxes is not None:
        boxes = _boxes(boxes)
    if mask is not None:
        mask = _masks(mask, grid)
    count = _count({"point_coords": coords, "box": boxes, "mask_input": mask})
    coords_frame, labels = _join(coords, labels, boxes, count, size, side)
    return Prompts(
        torch.from_numpy(coords_frame),
        torch.from_numpy(labels),
        None if mask is None else torch.from_numpy(mask),
        batched,
    )


def _numbers(name: str, value: ArrayLike, shape: str, dimensions: tuple[int, ...]) -> np.ndarray:
    """Convert an argument to an array of finite numbers with the expected number of axes."""
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name} must be an array of numbers of shape {shape}, not {type(value).__name__}.") from None
    if array.ndim not in dimensions:
        raise InputError(f"{name} must have shape {shape}, not {array.shape}.")
    if not np.isfinite(array).all():
        raise InputError(f"{name} must hold finite numbers; it has NaN or infinity.")
    return array


def _clicks(coords: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points ``(P, N, 2)`` and labels ``(P, N)``."""
    if coords.shape[-1] != 2 or coords.shape[:-1] != labels.shape:
        raise InputError(
            f"point_coords must have shape (N, 2) or (P, N, 2) and point_labels the same without the 2; "
            f"they have {coords.shape} and {labels.shape}."
        )
    unknown = labels[~np.isin(labels, _CLICK_LABELS)]
    if len(unknown):
        raise InputError(
            f"point_labels must be 1 (foreground), 0 (background) or -1 (ignored), not {unknown[0]:g}; "
            "give a box as box=."
        )
    return (coords, labels) if coords.ndim == 3 else (coords[None], labels[None])


def _boxes(boxes: np.ndarray) -> np.ndarray:
    """Boxes ``(P, 4)``."""
    if boxes.shape[-1] != 4:
        raise InputError(f"box must have shape (4,) or (P, 4), x0 y0 x1 y1, not {boxes.shape}.")
    boxes = boxes.reshape(-1, 4)
    inverted = np.flatnonzero((boxes[:, 2:] < boxes[:, :2]).any(axis=1))
    if len(inverted):
        raise InputError(
            f"box {boxes[inverted[0]].tolist()} ends before it begins: give x0 y0 x1 y1 with x0 <= x1, y0 <= y1"
        )
    return boxes


def _masks(mask: np.ndarray, grid: int) -> Float[np.ndarray, "p 1 m m"]:
    """Mask prompts ``(P, 1, grid, grid)``."""
    mask = mask if mask.ndim == 4 else mask[None]
    if mask.shape[1:] != (1, grid, grid):
        raise InputError(f"mask_input must be (1, {grid}, {grid}) per prompt, not {mask.shape[1:]}: low_res_masks fit.")
    return np.ascontiguousarray(mask, dtype=np.float32)


def _count(parts: dict[str, np.ndarray | None]) -> int:
    """Number of prompts; all parts must agree."""
    counts = {name: len(part) for name, part in parts.items() if part is not None}
    if len(set(counts.values())) > 1:
        described = ", ".join(f"{name} has {count}" for name, count in counts.items())
        raise InputError(f"all arguments of a batch must have the same number of prompts: {described}.")
    return next(iter(counts.values()), 1)


def _join(
    coords: np.ndarray | None, labels: np.ndarray | None, boxes: np.ndarray | None, count: int, size: Size, side: int
) -> tuple[Float[np.ndarray, "p n 2"], Float[np.ndarray, "p n"]]:
    """Clicks and box corners as points in the prompt frame; clicks without a box get a padding point."""
    all_coords, all_labels = [np.zeros((count, 0, 2), np.float32)], [np.zeros((count, 0), np.float32)]
    if coords is not None and labels is not None:
        all_coords.append(points_to_frame(coords, size, side))
        all_labels.append(labels.astype(np.float32))
        if boxes is None:
            all_coords.append(np.zeros((count, 1, 2), np.float32))
            all_labels.append(np.full((count, 1), PADDING, np.float32))
    if boxes is not None:
        all_coords.append(boxes_to_frame(boxes, size, side).reshape(count, 2, 2))
        all_labels.append(np.tile(np.array(BOX_CORNERS, np.float32), (count, 1)))
    return np.concatenate(all_coords, axis=1), np.concatenate(all_labels, axis=1)
