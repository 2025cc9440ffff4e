"""Which differences between two models are larger than noise.

A difference of mean IoUs counts if it exceeds two standard errors of the per-object differences (both models answer the
same prompts, so objects are paired). Times and memory must differ by `PAYS_FROM`, scores without values per object by
`SCORE_NOISE`. Sizes and counts are exact.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.ops.metrics import PAYS_FROM, bands

SCORE_NOISE = 0.01
"""Smallest difference of a score in [0, 1] that counts where there are no values per object."""
_PER_OBJECT = re.compile(
    r"^(?P<prompt>box|click[35]?(_fed)?)_(?P<metric>miou|boundary_iou|agreement|retained)(_(?P<band>small|medium|large))?$"
)
_KEYS = {"miou": "iou", "retained": "iou"}
_TIMED = re.compile(r"_ms$|_s$|^memory_mib$")
_EXACT = re.compile(r"_mib$|^parameters$|macs|_masks$")

Scores = Mapping[int, Mapping[str, Any]]
"""IoUs by annotation id."""


def differs(name: str, a: float, b: float, scores: tuple[Scores, Scores] | None = None) -> bool:
    """Whether two values of a metric differ by more than noise.

    Args:
        name: The metric.
        a: Value of one model.
        b: Value of the other.
        scores: Both models' values per object; None if unknown.
    """
    if _TIMED.search(name):
        return max(a, b) >= PAYS_FROM * min(a, b)
    if _EXACT.search(name):
        return a != b
    match = _PER_OBJECT.match(name)
    if match and scores:
        error = standard_error(
            *scores, f"{match['prompt']}_{_KEYS.get(match['metric'], match['metric'])}", match["band"]
        )
        if error is not None:
            return abs(_mean_difference(name, a, b, scores, match)) > 2 * error
    return abs(a - b) >= SCORE_NOISE - 1e-9  # 0.71 - 0.70 is below 0.01


def standard_error(a: Scores, b: Scores, key: str, band: str | None = None) -> float | None:
    """Standard error of the mean difference per object; None with fewer than two objects.

    Args:
        a: Values of one model.
        b: Values of the other.
        key: Value to compare, for example ``box_iou``.
        band: Only objects of this size band.
    """
    differences = _differences(a, b, key, band)
    if len(differences) < 2:
        return None
    return float(np.std(differences, ddof=1) / np.sqrt(len(differences)))


def _mean_difference(name: str, a: float, b: float, scores: tuple[Scores, Scores], match: re.Match[str]) -> float:
    """The difference in IoU; a share of the teacher's mIoU is judged by the IoUs behind it."""
    if match["metric"] != "retained":
        return a - b
    return float(np.mean(_differences(*scores, f"{match['prompt']}_iou", None)))


def _differences(a: Scores, b: Scores, key: str, band: str | None) -> list[float]:
    return [
        values[key] - b[number][key]
        for number, values in a.items()
        if key in values and key in b.get(number, {})
        if band is None or band in bands(values["area"])
    ]
