"""Everything mode: masks of all there is in an image, on any runtime.

`everything` gives the records of ``segment_anything.SamAutomaticMaskGenerator``. ``dense`` is its procedure with its
results; ``hierarchical`` is TinySAM's, which asks again only where a first, coarser round was not sure
(arXiv 2312.13789, section 3.3).
"""

from typing import Any

import numpy as np
import torch
from jaxtyping import UInt8

from pipeline.core.errors import InputError
from pipeline.ops import masks
from pipeline.runtime.everything.candidates import candidates
from pipeline.runtime.everything.grid import crops
from pipeline.runtime.everything.records import records, tidied
from pipeline.runtime.everything.settings import EverythingSettings
from pipeline.runtime.predictor import Predictor

__all__ = ["MODES", "EverythingSettings", "everything"]

MODES = ("hierarchical", "dense")
_DEFAULTS = EverythingSettings()


@torch.inference_mode()
def everything(
    predictor: Predictor,
    image: UInt8[np.ndarray, "h w 3"],
    mode: str = "hierarchical",
    settings: EverythingSettings = _DEFAULTS,
) -> list[dict[str, Any]]:
    """Masks of everything in an image, each by a point of a grid.

    Args:
        predictor: Gives its model; the images set in it stay.
        image: RGB, values in [0, 255].
        mode: ``dense`` asks for every point of the grid, ``hierarchical`` for those that a first round leaves over.
        settings: Grid, thresholds and form of the masks.

    Returns:
        Of each mask, as ``SamAutomaticMaskGenerator.generate`` returns them: ``segmentation`` ``(H, W)`` bool or
        compressed RLE; ``area`` in pixels; ``bbox`` x, y, width and height between the centres of its outermost
        pixels, so a mask of one pixel has a width of 0; ``predicted_iou``; ``point_coords``, the one point (x, y) it
        was asked for; ``stability_score``; ``crop_box`` xywh. The highest predicted IoU comes first in each crop.

    Raises:
        InputError: ``image`` is no such image, or there is no such mode.
    """
    if mode not in MODES:
        raise InputError(f"mode must be one of {', '.join(MODES)}, not {mode!r}.")
    own = Predictor(predictor.segmenter)
    own.set_image(image)
    size = own.original_size
    whole, *others = crops(size, settings.crop_n_layers, settings.crop_overlap_ratio)
    found = [(whole, candidates(own, whole, whole, mode, settings))]
    for crop in others:
        own.set_image(image[crop.y0 : crop.y1, crop.x0 : crop.x1])
        found.append((crop, candidates(own, crop, whole, mode, settings)))
    made = records(own.segmenter, found, size, settings.crop_nms_thresh)
    if settings.min_mask_region_area:
        made = tidied(made, settings.min_mask_region_area, max(settings.box_nms_thresh, settings.crop_nms_thresh))
    if settings.output_mode == "binary_mask":
        return [record | {"segmentation": masks.decode(record["segmentation"])} for record in made]
    return made
