"""Command ``score``: average precision of a COCO results file against COCO or LVIS annotations.

`evaluate` uses `average_precision` to score masks of detector boxes. The implementation is faster-coco-eval. The
``lvis`` package serves only as a reference in the tests: it is unmaintained and incompatible with numpy 2.
"""

import json
from pathlib import Path
from typing import Literal

from pipeline.evaluate.average_precision.precision import average_precision
from pipeline.evaluate.average_precision.results import Detection, most_certain, read_detections, read_results
from pipeline.evaluate.average_precision.truth import Truth, read_truth

__all__ = [
    "Detection",
    "Truth",
    "average_precision",
    "most_certain",
    "read_detections",
    "read_results",
    "read_truth",
    "score",
]

_DIGITS = 6


def score(*, gt: Path, results: Path, iou_type: Literal["segm", "bbox"], lvis: bool) -> str:
    """Score a results file; returns the metrics as JSON, rounded to six digits.

    Args:
        gt: Annotations in COCO's or LVIS's format.
        results: Detections: a list of ``image_id``, ``category_id``, ``score`` and ``segmentation`` or ``bbox``.
        iou_type: Whether masks or boxes are matched.
        lvis: LVIS's rules: 300 detections per image, and per image only its exhaustively checked categories.

    Raises:
        InputError: A file is missing or malformed; the message names the file and the record.
    """
    truth = read_truth(gt, iou_type=iou_type, lvis=lvis)
    figures = average_precision(truth, read_results(results, truth))
    return json.dumps({name: round(value, _DIGITS) for name, value in figures.items()}, indent=1)
