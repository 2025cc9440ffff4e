"""Mask IoU, means by instance size, and calibration. Pure functions of arrays.

Source of the size bands: COCO's detection evaluation. As in EfficientViT-SAM's evaluation
(``applications/efficientvit_sam/sam_eval_utils.py``) a border belongs to both bands: an instance of exactly 32 x 32
pixels counts as small and as medium. One difference: a band without instances has no mean, instead of dividing by zero.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

import numpy as np
from jaxtyping import Bool

SMALL_PX, LARGE_PX = 32**2, 96**2
"""COCO's area borders between small, medium and large, in pixels."""

Band = Literal["small", "medium", "large"]
BANDS: tuple[Band, ...] = ("small", "medium", "large")

PAYS_FROM = 1.05
"""Smallest speed-up distinguishable from noise; below it the lower precision is not worthwhile."""


def iou(a: Bool[np.ndarray, "h w"], b: Bool[np.ndarray, "h w"]) -> float:
    """Intersection over union of two masks of the same image, in [0, 1]; 0 for two empty masks, as in pycocotools.

    Raises:
        ValueError: The masks differ in size.
    """
    if a.shape != b.shape:
        raise ValueError(f"masks of one image must have one size, not {a.shape} and {b.shape}")
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 0.0


def bands(area_px: int | float) -> tuple[Band, ...]:
    """The size bands of an instance: one, or two if its area is a border."""
    holds = (area_px <= SMALL_PX, SMALL_PX <= area_px <= LARGE_PX, area_px >= LARGE_PX)
    return tuple(band for band, inside in zip(BANDS, holds, strict=True) if inside)


def band_means(name: str, values: Sequence[float], areas_px: Sequence[int | float]) -> dict[str, float]:
    """Mean over all instances and over those of each band.

    Args:
        name: Name of the metric, for example ``box_miou``.
        values: One per instance.
        areas_px: Pixels of the same instances' masks.

    Returns:
        ``name``, ``name_small``, ``name_medium``, ``name_large``; bands without instances are omitted.

    Raises:
        ValueError: The numbers of areas and values differ.
    """
    members: dict[str, list[float]] = {key: [] for key in (name, *(f"{name}_{band}" for band in BANDS))}
    for value, area in zip(values, areas_px, strict=True):
        members[name].append(value)
        for band in bands(area):
            members[f"{name}_{band}"].append(value)
    return {key: float(np.mean(group)) for key, group in members.items() if group}


class Bin(TypedDict):
    """Instances whose predicted IoU lies in one tenth of [0, 1]."""

    predicted: float | None
    """Mean predicted IoU; None without instances."""
    iou: float | None
    """Mean IoU."""
    count: int


CALIBRATION_BINS = 10


def calibration(predicted: Sequence[float], ious: Sequence[float]) -> list[Bin]:
    """Mean IoU by predicted IoU, in tenths; predictions are clipped to [0, 1].

    Raises:
        ValueError: The lengths differ.
    """
    members: list[list[tuple[float, float]]] = [[] for _ in range(CALIBRATION_BINS)]
    for guess, value in zip(predicted, ious, strict=True):
        guess = min(1.0, max(0.0, guess))
        members[min(CALIBRATION_BINS - 1, int(guess * CALIBRATION_BINS))].append((guess, value))
    means = [tuple(map(float, np.mean(group, axis=0))) if group else (None, None) for group in members]
    return [Bin(predicted=mean[0], iou=mean[1], count=len(group)) for mean, group in zip(means, members, strict=True)]


def calibration_error(bins: Sequence[Bin]) -> float:
    """Expected calibration error: the mean over instances of the difference between their bin's two means.

    Source: Guo et al. 2017, "On calibration of modern neural networks", with the IoU instead of the accuracy.

    Raises:
        ValueError: There is no instance.
    """
    count = sum(part["count"] for part in bins)
    if not count:
        raise ValueError("without instances there is no calibration error")
    gaps = ((part["predicted"], part["iou"], part["count"]) for part in bins)
    return sum(abs(p - v) * n for p, v, n in gaps if p is not None and v is not None) / count


_LOWER_IS_BETTER = re.compile(r"_(ms|mib|macs|error)$|(?<!_per)_s$|^parameters$|macs_per_prompt$")


def lower_is_better(name: str) -> bool:
    """The direction of a metric, by its name: latencies, sizes, costs and errors are better low, all others high."""
    return bool(_LOWER_IS_BETTER.search(name))


def goodness(name: str, value: float) -> float:
    """``value`` with the sign that makes the higher one the better one."""
    return -value if lower_is_better(name) else value


def retained(value: float | None, whole: float | None) -> float | None:
    """``value / whole``; None if either is unknown or ``whole`` is 0."""
    return value / whole if value is not None and whole else None


TRIVIAL = {"box": "trivial_box_miou", "click": "trivial_click_miou"}
"""Prompt to the metric of the best trivial mask on the same instances."""


def below_trivial(figures: Mapping[str, Any]) -> list[str]:
    """The prompts (``box``, ``click``) for which a model is no better than a trivial mask."""
    pairs = {prompt: (figures.get(f"{prompt}_miou"), figures.get(key)) for prompt, key in TRIVIAL.items()}
    return [
        prompt for prompt, (own, trivial) in pairs.items() if own is not None and trivial is not None and own <= trivial
    ]
