"""COCO's and LVIS's metrics of detections.

Source: pycocotools' ``COCOeval`` (IoU 0.50 to 0.95, 1, 10 and 100 detections per image and category) and lvis's
``LVISEval`` (300 per image; a category is scored only in images checked for it, and an unmatched detection is a false
positive only if the category is exhaustively annotated). As there, the metric of a group without instances is -1.
"""

import copy
from collections.abc import Mapping, Sequence

from faster_coco_eval import COCO, COCOeval_faster

from pipeline.evaluate.average_precision.results import LVIS_DETECTIONS
from pipeline.evaluate.average_precision.truth import Record, Truth

COCO_FIGURES = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR1", "AR10", "AR100", "ARs", "ARm", "ARl")
LVIS_FIGURES: Mapping[str, int] = {
    name: index for index, name in enumerate(("AP", "AP50", "AP75", "APs", "APm", "APl", f"AR@{LVIS_DETECTIONS}"))
} | {f"AR{band}@{LVIS_DETECTIONS}": 9 + i for i, band in enumerate("sml")}
"""Indices of LVIS's metrics in faster-coco-eval's; rare, common and frequent categories are its last three."""


def average_precision(truth: Truth, results: Sequence[Record]) -> dict[str, float]:
    """Score detections.

    Args:
        truth: From `read_truth`.
        results: From `read_results`, or in its format.

    Returns:
        For COCO ``AP AP50 AP75 APs APm APl AR1 AR10 AR100 ARs ARm ARl``; for LVIS ``AP AP50 AP75 APs APm APl APr APc
        APf AR@300 ARs@300 ARm@300 ARl@300``. In [0, 1], or -1.
    """
    images, categories = [*truth.images.values()], [*truth.categories.values()]
    # Scorers modify annotations in place, and `truth` may be used again.
    sides = [_indexed(images, categories, copy.deepcopy([*side])) for side in (truth.annotations, results)]
    scorer = COCOeval_faster(*sides, truth.iou_type, lvis_style=truth.lvis)
    if truth.lvis:
        scorer.params.maxDets = [LVIS_DETECTIONS]
    scorer.run()
    values = [float(value) for value in scorer.all_stats]
    if not truth.lvis:
        return dict(zip(COCO_FIGURES, values, strict=False))
    figures = {name: values[index] for name, index in LVIS_FIGURES.items()}
    groups = dict(zip(("APr", "APc", "APf"), values[-3:], strict=True))
    order = ["AP", "AP50", "AP75", "APs", "APm", "APl", *groups]
    return {name: (figures | groups)[name] for name in [*order, *(n for n in figures if n not in order)]}


def _indexed(images: list[Record], categories: list[Record], annotations: list[Record]) -> COCO:
    return COCO({"images": images, "categories": categories, "annotations": annotations})
