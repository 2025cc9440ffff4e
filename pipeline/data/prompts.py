"""Training prompts sampled from ground truth: noisy boxes, clicks inside masks, corrective clicks.

Source: SAM, appendix A: each box coordinate gets normal noise with a standard deviation of 10 % of the side, at most 20
pixels of 1024; the first click is uniform in the mask, the next one uniform in the error region. EfficientViT-SAM,
stage 2: all masks of an image get a box or the same number of clicks. TinySAM, section 3.1: clicks move to where a
student misses the target. Masks are coverages on the decoder's low-resolution raster, so a click is the position of a
raster cell in the prompt frame.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from pipeline.data.instances import Lazy
from pipeline.ops.masks import bounds, center
from pipeline.ops.point_labels import BACKGROUND, BOX_CORNERS, FOREGROUND, PADDING

BOX_JITTER, BOX_JITTER_CAP = 0.1, 20 / 1024
"""SAM's standard deviation as a fraction of the box's side, and largest move as a fraction of the frame's side."""

Masks = Float[np.ndarray, "_ m m"] | UInt8[np.ndarray, "_ m m"] | Lazy
Boxes = Float[np.ndarray, "_ 4"] | Lazy


@dataclass(frozen=True)
class Prompts:
    """N points for each of P prompts on B images: a box's corners, or clicks and SAM's padding points."""

    coords: Float[Tensor, "b p n 2"]
    """x and y in the prompt frame."""
    labels: Float[Tensor, "b p n"]
    targets: Float[Tensor, "b p m m"] | UInt8[Tensor, "b p m m"]
    """Coverage of each prompt's target mask, in [0, 1], or in bytes of which 255 is fully covered."""
    present: Bool[Tensor, "b p"]
    """False for the prompts of an image without instances."""

    def to(self, device: torch.device) -> "Prompts":
        """Move to ``device``, where targets in bytes become floats in [0, 1]."""
        coords, labels, targets, present = (
            part.to(device, non_blocking=True) for part in (self.coords, self.labels, self.targets, self.present)
        )
        return Prompts(coords, labels, targets if targets.is_floating_point() else targets.float() / 255, present)


def first_prompts(
    rngs: Sequence[np.random.Generator],
    masks: Sequence[Masks],
    boxes: Sequence[Boxes],
    count: int,
    side: int,
    *,
    box_jitter: float = BOX_JITTER,
    exact_share: float = 0.0,
) -> Prompts:
    """Sample ``count`` instances per image, each prompted by a box or by a click with equal probability.

    Args:
        rngs: Random generator of each image.
        masks: Per image, coverages of its instances on the low-resolution raster, in [0, 1] or in bytes. Of
            `Lazy` ones only those of the sampled instances are computed.
        boxes: Per image, its instances' boxes xyxy in the prompt frame.
        count: P. Images with fewer instances repeat some.
        side: Side of the prompt frame, in pixels.
        box_jitter: See `noisy_box`.
        exact_share: Share of prompts as in evaluation: the tight box, or a click at the mask's centre.
    """
    clicks = [1] * len(masks)
    return _drawn(rngs, masks, boxes, count, side, clicks, points=2, box_jitter=box_jitter, exact_share=exact_share)


def drawn_prompts(
    rngs: Sequence[np.random.Generator],
    masks: Sequence[Masks],
    boxes: Sequence[Boxes],
    count: int,
    side: int,
    *,
    clicks: tuple[int, int],
    box_jitter: float = BOX_JITTER,
) -> list[tuple[list[int], Prompts]]:
    """`first_prompts` with a number of clicks between ``clicks[0]`` and ``clicks[1]`` for all masks of an image.

    If an image gets one click, each of its masks has a box or a click; otherwise all have boxes or all have clicks. A
    box and several clicks, which have different numbers of points in SAM, therefore never share a row that would need
    more padding than SAM adds.

    Returns:
        Groups of images whose prompts have the same number of points: their indices into ``masks``, and their prompts.
    """
    numbers = [int(rng.integers(clicks[0], clicks[1] + 1)) for rng in rngs]
    numbers = [n if n == 1 or rng.random() < 0.5 else 0 for n, rng in zip(numbers, rngs, strict=True)]
    groups = list[tuple[list[int], Prompts]]()
    for points in sorted({max(2, n + 1) for n in numbers}):
        indices = [index for index, n in enumerate(numbers) if max(2, n + 1) == points]
        picked, instances, corners = ([part[index] for index in indices] for part in (rngs, masks, boxes))
        own = [numbers[index] for index in indices]
        drawn = _drawn(picked, instances, corners, count, side, own, points=points, box_jitter=box_jitter)  # type: ignore[arg-type]
        groups.append((indices, drawn))
    return groups


def _drawn(
    rngs: Sequence[np.random.Generator],
    masks: Sequence[Masks],
    boxes: Sequence[Boxes],
    count: int,
    side: int,
    clicks: Sequence[int],
    *,
    points: int,
    box_jitter: float,
    exact_share: float = 0.0,
) -> Prompts:
    """Prompts with ``points`` points; per image, 0 ``clicks`` means boxes and 1 means a box or a click."""
    grid = next(m.shape[-1] for m in masks)
    coords = np.zeros((len(masks), count, points, 2), np.float32)
    labels = np.full((len(masks), count, points), PADDING, np.float32)
    targets = np.zeros((len(masks), count, grid, grid), masks[0].dtype)
    present = np.zeros((len(masks), count), bool)
    for i, (rng, instances, corners, n) in enumerate(zip(rngs, masks, boxes, clicks, strict=True)):
        if not len(instances):
            continue
        present[i] = True
        for j, k in enumerate(_pick(rng, len(instances), count).tolist()):
            targets[i, j] = instances[k]
            exact = exact_share > 0 and rng.random() < exact_share
            if n == 0 or (n == 1 and rng.random() < 0.5):
                box = corners[k] if exact else noisy_box(rng, corners[k], side, box_jitter)
                coords[i, j], labels[i, j] = box.reshape(2, 2), BOX_CORNERS
            else:
                points_of_mask = clicks_in(rng, instances[k], side, n)
                if exact:
                    points_of_mask[0] = central_click(instances[k], side)
                coords[i, j, :n], labels[i, j, :n] = points_of_mask, FOREGROUND
    return Prompts(*(torch.from_numpy(a) for a in (coords, labels, targets, present)))


def _pick(rng: np.random.Generator, available: int, count: int) -> np.ndarray:
    """Sample ``count`` of ``available`` indices, without replacement within each round."""
    rounds = -(-count // available)
    return np.concatenate([rng.permutation(available) for _ in range(rounds)])[:count]


def noisy_box(
    rng: np.random.Generator, box: Float[np.ndarray, "4"], side: int, jitter: float = BOX_JITTER
) -> Float[np.ndarray, "4"]:
    """Add normal noise to the coordinates of a box xyxy, within the frame.

    Args:
        rng: Random generator.
        box: Corners in the prompt frame.
        side: Side of the prompt frame, in pixels.
        jitter: Standard deviation as a fraction of the box's width or height; no coordinate moves by more than 20 /
            1024 of the frame. 0 leaves the box as it is.
    """
    extent = np.array([box[2] - box[0], box[3] - box[1]] * 2)
    cap = BOX_JITTER_CAP * side
    moved = np.clip(box + np.clip(jitter * extent * rng.standard_normal(4), -cap, cap), 0, side).reshape(2, 2)
    return np.sort(moved, axis=0).reshape(4).astype(np.float32)


def click(
    rng: np.random.Generator, coverage: Float[np.ndarray, "m m"] | UInt8[np.ndarray, "m m"], side: int
) -> Float[np.ndarray, "2"]:
    """Sample a point (x, y) of a mask, in the prompt frame.

    A cell is drawn with a probability proportional to its coverage, so that the pixels of a mask are equally likely.
    Cells with less than half of the largest coverage are left out, since a point in them is likely off the mask.
    """
    return clicks_in(rng, coverage, side, 1)[0]


def clicks_in(
    rng: np.random.Generator, coverage: Float[np.ndarray, "m m"] | UInt8[np.ndarray, "m m"], side: int, count: int
) -> Float[np.ndarray, "n 2"]:
    """Sample ``count`` points as `click` does, one after the other."""
    rows, columns = bounds(coverage > 0)
    inner = coverage[rows, columns].astype(np.float32)
    if coverage.dtype == np.uint8:
        inner /= 255
    weights = np.where(inner >= inner.max() / 2, inner, 0).ravel().cumsum(dtype=np.float64)
    cell = side / coverage.shape[-1]
    points = np.empty((count, 2), np.float32)
    for point in points:
        pick = int(np.searchsorted(weights, rng.random() * weights[-1], side="right"))
        row, column = divmod(pick, inner.shape[-1])
        point[:] = (np.array([column + columns.start, row + rows.start]) + rng.uniform(0.25, 0.75, 2)) * cell
    return points


def central_click(coverage: Float[np.ndarray, "m m"] | UInt8[np.ndarray, "m m"], side: int) -> Float[np.ndarray, "2"]:
    """The point (x, y) of a mask farthest from its border, in the prompt frame."""
    full = 255 if coverage.dtype == np.uint8 else 1
    inside = coverage >= min(0.5 * full, float(coverage.max()))
    cell = side / coverage.shape[-1]
    return ((np.array(center(inside)) + 0.5) * cell).astype(np.float32)


def corrective_clicks(
    rngs: Sequence[np.random.Generator],
    logits: Float[Tensor, "b p m m"],
    targets: Float[Tensor, "b p m m"],
    side: int,
) -> tuple[Float[Tensor, "b p 1 2"], Float[Tensor, "b p 1"]]:
    """One click per prompt, uniform in the error region; padding if the mask has no errors.

    Args:
        rngs: Random generator of each image.
        logits: Predicted masks.
        targets: Target coverages.
        side: Side of the prompt frame, in pixels.

    Returns:
        Coordinates in the prompt frame and labels: foreground for missing cells, background for surplus cells.
    """
    truth = (targets > 0.5).numpy()
    wrong = (logits > 0).cpu().numpy() != truth
    coords = np.zeros((*wrong.shape[:2], 1, 2), np.float32)
    labels = np.full((*wrong.shape[:2], 1), PADDING, np.float32)
    for i, j in np.ndindex(*wrong.shape[:2]):
        cells = np.flatnonzero(wrong[i, j])
        if len(cells):
            row, column = divmod(int(cells[rngs[i].integers(len(cells))]), wrong.shape[-1])
            coords[i, j, 0] = (np.array([column, row]) + 0.5) * side / wrong.shape[-1]
            labels[i, j, 0] = FOREGROUND if truth[i, j, row, column] else BACKGROUND
    return torch.from_numpy(coords), torch.from_numpy(labels)


def hard_clicks(
    coords: Float[Tensor, "b p 2 2"],
    labels: Float[Tensor, "b p 2"],
    logits: Float[Tensor, "b p m m"],
    targets: Float[Tensor, "b p m m"],
    chance: Float[Tensor, "b p"],
    side: int,
) -> Float[Tensor, "b p 2 2"]:
    """Move each click to a cell where the mask misses its target. Boxes, and clicks without missed cells, stay.

    Args:
        coords: Boxes, and clicks with their padding.
        labels: Their point labels.
        logits: Current masks.
        targets: Target coverages.
        chance: Uniform random numbers in [0, 1) that select one of the missed cells.
        side: Side of the prompt frame, in pixels.
    """
    missed = (targets > 0.5) & (logits <= 0)
    cell, point = _pick_cells(missed, chance, side)
    moves = (cell >= 0) & (labels[..., 0] == FOREGROUND)
    first = torch.where(moves[..., None], point.to(coords), coords[:, :, 0])
    return torch.stack([first, coords[:, :, 1]], dim=2)


def disagreement_clicks(
    student: Float[Tensor, "b p m m"],
    teacher: Float[Tensor, "b p m m"],
    valid: Bool[Tensor, "b 1 m m"],
    chance: Float[Tensor, "b p"],
    side: int,
) -> tuple[Float[Tensor, "b p 1 2"], Float[Tensor, "b p 1"]]:
    """One click per prompt, uniform where a student's mask differs from its teacher's; padding if they agree.

    Args:
        student: Mask logits.
        teacher: Mask logits.
        valid: Cells that cover part of the image; no click is elsewhere.
        chance: Uniform random numbers in [0, 1) that select one of the cells.
        side: Side of the prompt frame, in pixels.

    Returns:
        Coordinates in the prompt frame and labels: foreground where only the teacher has the mask, background where
        only the student has it.
    """
    truth = teacher > 0
    cell, point = _pick_cells(((student > 0) != truth) & valid, chance, side)
    label = truth.flatten(2).gather(2, cell.clamp(min=0)[..., None])[..., 0].to(point)
    label = torch.where(label > 0, FOREGROUND, BACKGROUND).to(point)
    absent = cell < 0
    point, label = point.masked_fill(absent[..., None], 0.0), label.masked_fill(absent, PADDING)
    return point[:, :, None], label[..., None]


def _pick_cells(cells: Tensor, chance: Tensor, side: int) -> tuple[Tensor, Tensor]:
    """Pick one of the true cells of each mask ``(B, P, m, m)``.

    Returns:
        Its index ``(B, P)``, -1 where no cell is true, and its centre ``(B, P, 2)`` in the prompt frame.
    """
    counts = cells.flatten(2).cumsum(dim=2)
    total = counts[..., -1]
    rank = ((chance * total).long() + 1).minimum(total)  # a chance near 1 may round up
    cell = torch.searchsorted(counts, rank[..., None])[..., 0].masked_fill(total == 0, -1)
    width = cells.shape[-1]
    return cell, (torch.stack([cell % width, cell // width], dim=-1) + 0.5) * (side / width)
