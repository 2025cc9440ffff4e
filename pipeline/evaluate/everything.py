"""Accuracy and time of everything mode, dense and hierarchical.

Average recall is COCO's for proposals (`pipeline.evaluate.average_precision.recall`). The mean IoU is TinySAM's
(arXiv 2312.13789, table 2): the IoU of each annotated object with its best-matching mask, averaged over objects.
Differences from segment-anything's evaluation of proposals: no resampling, and masks of equal score keep their order.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from jaxtyping import Float
from pycocotools import mask as coco_mask

from pipeline.core.config import Config
from pipeline.core.errors import InputError
from pipeline.core.progress import progress
from pipeline.data.coco import Photograph
from pipeline.evaluate.average_precision.recall import average_recall
from pipeline.evaluate.validation import ValidationSet
from pipeline.ops.geometry import Size
from pipeline.ops.masks import Rle
from pipeline.runtime import EverythingSettings, Predictor, everything
from pipeline.runtime.everything import MODES
from pipeline.runtime.everything.settings import Count, GridSettings, NonNegative

_REPORTED = ("segmentation", "area", "predicted_iou")
"""Keys of a record that the report needs."""


class EverythingConfig(GridSettings, Config):
    """Settings of the evaluation of everything mode."""

    images: Count = 50
    """Number of validation images to segment: the first with instances."""
    pictures: NonNegative = 4
    """Number of these images, from the first, whose masks are stored for the report."""

    def settings(self) -> EverythingSettings:
        """Settings for `pipeline.runtime.everything`."""
        return EverythingSettings(**self.model_dump(exclude={"images", "pictures"}), output_mode="coco_rle")


@dataclass(frozen=True)
class ModeResults:
    """Results of one mode on all images."""

    records: list[list[dict[str, Any]]] = field(default_factory=list)
    """Records per image."""
    seconds: list[float] = field(default_factory=list)
    """Time per image, encoding included."""

    def rles(self) -> list[list[Rle]]:
        """Masks per image."""
        return [[record["segmentation"] for record in records] for records in self.records]


def evaluate_everything(
    predictor: Predictor,
    validation: ValidationSet,
    photographs: Sequence[Photograph],
    config: EverythingConfig,
    *,
    timed: bool,
) -> tuple[dict[str, float], dict[str, Any]]:
    """Segment the first images of the validation split in both modes, alternating per image.

    Args:
        predictor: Provides the model; the images set in it are kept.
        validation: The set.
        photographs: Its images; at least one has an instance that is not a crowd region. Crowd regions are not objects
            to find.
        config: Section ``evaluate.everything`` of params.yaml.
        timed: Include the times ``_s``, which are not reproducible byte for byte.

    Returns:
        Metrics: per mode ``everything_<mode>_ar100`` and ``_ar1000``, ``_miou`` with the annotated objects, ``_masks``
        per image and ``_s``, the median seconds per image; and ``everything_miou``: `best_ious` of the dense masks
        among the hierarchical ones, averaged over all dense masks; absent if there are no dense masks.
        For everything.json: the number of images, and the masks of the first ones.

    Raises:
        InputError: An image is missing or damaged.
    """
    single = [replace(p, instances=[i for i in p.instances if not i.iscrowd]) for p in photographs]
    images = [photograph for photograph in single if photograph.instances][: config.images]
    if not images:
        raise InputError("no image has an instance that is not a crowd region: set evaluate.everything to null.")
    settings = config.settings()
    results: dict[str, ModeResults] = {mode: ModeResults() for mode in MODES}
    for photograph in progress(images, "everything", "image"):
        image = validation.read_image(photograph)
        for mode, result in results.items():
            begin = time.perf_counter()
            result.records.append(everything(predictor, image, mode, settings))
            result.seconds.append(time.perf_counter() - begin)
    truths = [[instance.rle for instance in photograph.instances] for photograph in images]
    sizes = [(photograph.height, photograph.width) for photograph in images]
    metrics = dict[str, float]()
    for mode, result in results.items():
        values = _accuracy(sizes, truths, result) | ({"s": float(np.median(result.seconds))} if timed else {})
        metrics |= {f"everything_{mode}_{name}": value for name, value in values.items()}
    pairs = zip(results["hierarchical"].rles(), results["dense"].rles(), strict=True)
    agreement = np.concatenate([best_ious(hierarchical, dense) for hierarchical, dense in pairs])
    if len(agreement):
        metrics["everything_miou"] = float(agreement.mean())
    shown = [_picture(p, i, results) for i, p in enumerate(images[: config.pictures])]
    return metrics, {"evaluated": len(images), "images": shown}


def best_ious(predictions: Sequence[Rle], targets: Sequence[Rle]) -> Float[np.ndarray, " n"]:
    """IoU of each target mask with its best-matching prediction; 0 without predictions."""
    if not predictions or not targets:
        return np.zeros(len(targets))
    rows, columns = (
        [rle | {"counts": rle["counts"].encode("ascii")} for rle in rles] for rles in (predictions, targets)
    )
    return np.asarray(coco_mask.iou(rows, columns, [0] * len(columns)), dtype=np.float64).max(axis=0)


def _accuracy(sizes: Sequence[Size], truths: Sequence[Sequence[Rle]], result: ModeResults) -> dict[str, float]:
    scored = [[(record["segmentation"], record["predicted_iou"]) for record in image] for image in result.records]
    recall = average_recall(sizes, truths, scored)
    ious = [best_ious(image, truth) for image, truth in zip(result.rles(), truths, strict=True)]
    return {f"ar{number}": value for number, value in recall.items()} | {
        "miou": float(np.concatenate(ious).mean()),
        "masks": float(np.mean([len(image) for image in result.records])),
    }


def _picture(photograph: Photograph, index: int, results: Mapping[str, ModeResults]) -> dict[str, Any]:
    modes = {
        mode: [{key: record[key] for key in _REPORTED} for record in result.records[index]]
        for mode, result in results.items()
    }
    return {"image_id": photograph.id, "file_name": photograph.file_name, "modes": modes}
