"""Everything mode: masks of everything in an image, on any runtime.

`everything` returns the records of ``segment_anything.SamAutomaticMaskGenerator``. ``dense`` is its procedure with the
same results; ``hierarchical`` is TinySAM's, which prompts again only where a coarser first round was not confident
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
from pipeline.runtime.everything.records import records, remove_small_regions
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
    """Generate masks of everything in an image from a grid of point prompts.

    Args:
        predictor: Provides the model; the images set in it are kept.
        image: RGB, values in [0, 255].
        mode: ``dense`` prompts with every grid point, ``hierarchical`` with a coarse grid and then the points it did
            not cover confidently.
        settings: Grid, thresholds and mask format.

    Returns:
        One record per mask, as ``SamAutomaticMaskGenerator.generate`` returns: ``segmentation`` ``(H, W)`` bool or
        compressed RLE; ``area`` in pixels; ``bbox`` x, y, width and height between the centres of the outermost pixels,
        so a mask of one pixel has a width of 0; ``predicted_iou``; ``point_coords``, its point prompt (x, y);
        ``stability_score``; ``crop_box`` xywh. Sorted by descending predicted IoU within each crop.

    Raises:
        InputError: ``image`` or ``mode`` is invalid.
    """
    if mode not in MODES:
        raise InputError(f"mode must be one of {', '.join(MODES)}, not {mode!r}.")
    own = Predictor(predictor.segmenter)
    own.set_image(image)
    size = own.original_size
    whole, *others = crops(size, settings.crop_n_layers, settings.crop_overlap_ratio)
    per_crop = [(whole, candidates(own, whole, whole, mode, settings))]
    for crop in others:
        own.set_image(image[crop.y0 : crop.y1, crop.x0 : crop.x1])
        per_crop.append((crop, candidates(own, crop, whole, mode, settings)))
    results = records(own.segmenter, per_crop, size, settings.crop_nms_thresh)
    if settings.min_mask_region_area:
        nms_thresh = max(settings.box_nms_thresh, settings.crop_nms_thresh)
        results = remove_small_regions(results, settings.min_mask_region_area, nms_thresh)
    if settings.output_mode == "binary_mask":
        return [record | {"segmentation": masks.decode(record["segmentation"])} for record in results]
    return results
