"""Settings of everything mode."""

import math
from dataclasses import dataclass, fields

from pipeline.core.errors import InputError

OUTPUT_MODES = ("binary_mask", "coco_rle")


@dataclass(frozen=True, kw_only=True)
class EverythingSettings:
    """Names and defaults are those of ``segment_anything.SamAutomaticMaskGenerator``; the last two are TinySAM's.

    Raises:
        InputError: A value is out of its range.
    """

    points_per_side: int = 32
    """Points of the grid along one side of the image, at least 1."""
    points_per_batch: int = 32
    """Points decoded at once, at least 1; no mask depends on it. 64 in segment-anything: see docs/benchmarks.md."""
    pred_iou_thresh: float = 0.88
    """A mask's predicted IoU must exceed it; in [0, 1], 0 lets all pass."""
    stability_score_thresh: float = 0.95
    """A mask's stability must reach it; in [0, 1], 0 lets all pass."""
    stability_score_offset: float = 1.0
    """Distance of the stability score's two cutoffs from 0, in logits; at least 0."""
    box_nms_thresh: float = 0.7
    """Box IoU above which of two masks only the one with the higher predicted IoU remains; in [0, 1]."""
    crop_n_layers: int = 0
    """Layers of crops in addition to the whole image: layer i has 4^i of them."""
    crop_nms_thresh: float = 0.7
    """`box_nms_thresh` between crops, where the mask of the smaller crop remains; in [0, 1]."""
    crop_overlap_ratio: float = 512 / 1500
    """Overlap of the first layer's crops, as a share of the image's shorter side; in [0, 1)."""
    crop_n_points_downscale_factor: int = 1
    """`points_per_side` is divided by its i-th power in layer i; at least 1."""
    min_mask_region_area: int = 0
    """Holes and islands of fewer pixels are removed; 0 leaves masks as they are."""
    output_mode: str = "binary_mask"
    """``binary_mask``, or ``coco_rle`` for compressed RLE."""
    coarse_stride: int = 4
    """Hierarchical only: the first round uses every `coarse_stride`-th grid point per axis; at least 1."""
    confident_logit: float = 8.5
    """Hierarchical only: the second round skips points where a first-round logit exceeds this; above 0."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.type is int and (isinstance(value, bool) or not isinstance(value, int)):
                raise InputError(f"{field.name} must be a whole number, not {value!r}.")
            if field.type is float and not (isinstance(value, int | float) and math.isfinite(value)):
                raise InputError(f"{field.name} must be a finite number, not {value!r}.")
        for name in ("points_per_side", "points_per_batch", "crop_n_points_downscale_factor", "coarse_stride"):
            self._require(name, getattr(self, name) >= 1, "at least 1")
        for name in ("crop_n_layers", "min_mask_region_area", "stability_score_offset"):
            self._require(name, getattr(self, name) >= 0, "at least 0")
        for name in ("pred_iou_thresh", "stability_score_thresh", "box_nms_thresh", "crop_nms_thresh"):
            self._require(name, 0 <= getattr(self, name) <= 1, "in [0, 1]")
        self._require("crop_overlap_ratio", 0 <= self.crop_overlap_ratio < 1, "in [0, 1)")
        self._require("confident_logit", self.confident_logit > 0, "above 0")
        self._require("output_mode", self.output_mode in OUTPUT_MODES, f"one of {', '.join(OUTPUT_MODES)}")

    def _require(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise InputError(f"{name} must be {expected}, not {getattr(self, name)!r}.")
