"""The files of an evaluation beside its metrics: results per set, and the scores of trivial masks."""

import os
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pipeline.core.artifact import BASELINES, write_json
from pipeline.data.coco import Photograph
from pipeline.evaluate import baselines
from pipeline.evaluate.accuracy import Scores
from pipeline.evaluate.detections import DetectionsConfig, trivial_detections
from pipeline.evaluate.validation import ValidationSet

MASKS = "masks.json"
"""The teacher's masks, to which a student's are compared."""


def write_set(
    out: Path,
    validation: ValidationSet,
    photographs: list[Photograph],
    scores: Scores,
    pictures: int,
    *,
    keep_all: bool,
) -> None:
    """Write the results of one set: of the first one beside the metrics, of another in a folder of its name.

    Args:
        out: The evaluation.
        validation: The set.
        photographs: Its photographs.
        scores: The model's.
        pictures: Number of photographs whose masks are written.
        keep_all: Also write all masks, to which a student's are compared.
    """
    directory = out / validation.name
    directory.mkdir(exist_ok=True)
    shown = {p.id for p in [p for p in photographs if p.instances][:pictures]}
    write_json(directory / "instances.json", scores.instances)
    write_json(directory / "calibration.json", scores.calibration())
    write_json(directory / "predictions.json", [p for p in scores.predictions if p["image_id"] in shown])
    if keep_all:
        write_json(directory / MASKS, scores.predictions)


def write_baselines(
    detections: Mapping[str, DetectionsConfig], out: Path, sets: Sequence[tuple[ValidationSet, list[Photograph]]]
) -> None:
    """Write the scores of trivial masks on each set, those for a detector's boxes with the first one's."""
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for number, (validation, photographs) in enumerate(sets):
            scores = baselines.trivial_masks(photographs, pool)
            for name, boxes in detections.items() if number == 0 else ():
                for predictor, own in trivial_detections(boxes, name, pool).items():
                    scores[predictor] |= own
            write_json(out / validation.name / BASELINES, scores)
