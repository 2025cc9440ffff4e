"""Settings of everything mode."""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, ValidationError

from pipeline.core.errors import InputError

Count = Annotated[int, Field(ge=1)]
NonNegative = Annotated[int, Field(ge=0)]
Share = Annotated[FiniteFloat, Field(ge=0, le=1)]


class GridSettings(BaseModel):
    """Settings of the point grid and of the mask filters, with segment-anything's and TinySAM's names and defaults."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)

    points_per_side: Count = 32
    """Points of the grid along one side of the image, at least 1."""
    points_per_batch: Count | None = None
    """Points decoded at once, at least 1; no mask depends on it. None: 32 on a processor (docs/benchmarks.md), and on a
    GPU 64, as segment-anything."""
    pred_iou_thresh: Share = 0.88
    """A mask's predicted IoU must exceed it; in [0, 1], 0 lets all pass."""
    stability_score_thresh: Share = 0.95
    """A mask's stability must reach it; in [0, 1], 0 lets all pass."""
    stability_score_offset: Annotated[FiniteFloat, Field(ge=0)] = 1.0
    """Distance of the stability score's two cutoffs from 0, in logits; at least 0."""
    box_nms_thresh: Share = 0.7
    """Box IoU above which of two masks only the one with the higher predicted IoU remains; in [0, 1]."""
    crop_n_layers: NonNegative = 0
    """Layers of crops in addition to the whole image: layer i has 4^i of them."""
    coarse_stride: Count = 4
    """Hierarchical only: the first round uses every `coarse_stride`-th grid point per axis; at least 1."""
    confident_logit: Annotated[FiniteFloat, Field(gt=0)] = 8.5
    """Hierarchical only: the second round skips points where a first-round logit exceeds this; above 0."""

    def points_at_once(self, device: str) -> int:
        """``points_per_batch``, or its default on a type of device: ``cpu``, ``cuda``."""
        return self.points_per_batch or (32 if device == "cpu" else 64)


class EverythingSettings(GridSettings):
    """Settings of `everything`: those of ``segment_anything.SamAutomaticMaskGenerator`` and two of TinySAM.

    Raises:
        InputError: A value is of a wrong type or out of its range.
    """

    crop_nms_thresh: Share = 0.7
    """`box_nms_thresh` between crops, where the mask of the smaller crop remains; in [0, 1]."""
    crop_overlap_ratio: Annotated[FiniteFloat, Field(ge=0, lt=1)] = 512 / 1500
    """Overlap of the first layer's crops, as a share of the image's shorter side; in [0, 1)."""
    crop_n_points_downscale_factor: Count = 1
    """`points_per_side` is divided by its i-th power in layer i; at least 1."""
    min_mask_region_area: NonNegative = 0
    """Holes and islands of fewer pixels are removed; 0 leaves masks as they are."""
    output_mode: Literal["binary_mask", "coco_rle"] = "binary_mask"
    """``binary_mask``, or ``coco_rle`` for compressed RLE."""

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            faults = [f"{'.'.join(map(str, e['loc']))} is {e['input']!r}: {e['msg']}" for e in error.errors()]
            raise InputError(f"{'; '.join(faults)}.") from None
