"""The act ``score``: average precision of any results file in COCO's format, for COCO's and LVIS's annotations.

`average_precision` is what `evaluate` scores detectors' boxes with. It goes through faster-coco-eval. The ``lvis``
package itself is the check in the tests, and not used here: it is not maintained, and calls a name that numpy 2 does
not have.
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
    """What the command prints: the figures as JSON, to six digits.

    Args:
        gt: Annotations in COCO's or LVIS's format.
        results: Detections: a list of ``image_id``, ``category_id``, ``score`` and ``segmentation`` or ``bbox``.
        iou_type: What is matched: masks or boxes.
        lvis: LVIS's rules: 300 detections per image, and only categories that were looked for in an image count.

    Raises:
        InputError: A file is absent or not what it should be; the text names the file and the record.
    """
    truth = read_truth(gt, iou_type=iou_type, lvis=lvis)
    figures = average_precision(truth, read_results(results, truth))
    return json.dumps({name: round(value, _DIGITS) for name, value in figures.items()}, indent=1)
