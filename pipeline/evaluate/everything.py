"""Everything mode of a model: what it finds densely and hierarchically, how well, and how long it takes.

Average recall is COCO's for proposals (`pipeline.evaluate.average_precision.recall`). The mean IoU with the truth is
TinySAM's (arXiv 2312.13789, table 2): each annotated object against the mask found that fits it best, mean over
objects. What differs from segment-anything's evaluation of proposals: nothing is resampled, and masks of equal score
stay in order.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float
from pycocotools import mask as coco_mask
from pydantic import Field

from pipeline.core.config import Config
from pipeline.core.progress import progress
from pipeline.data.coco import Photograph
from pipeline.evaluate.accuracy import read_image
from pipeline.evaluate.average_precision.recall import average_recall
from pipeline.ops.geometry import Size
from pipeline.ops.masks import Rle
from pipeline.runtime import EverythingSettings, Predictor, everything
from pipeline.runtime.everything import MODES

_KEPT = ("segmentation", "area", "predicted_iou")
"""What the report needs of a record."""


Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class EverythingConfig(Config):
    """How everything mode is measured. From ``points_per_side`` on: see `pipeline.runtime.EverythingSettings`."""

    images: Count = 50
    """Validation images that are segmented, from the first; those without instances do not count."""
    pictures: Annotated[int, Field(ge=0)] = 4
    """Of how many of them, from the first, masks are kept for the report."""
    points_per_side: Count = 32
    points_per_batch: Count = 32
    pred_iou_thresh: Share = 0.88
    stability_score_thresh: Share = 0.95
    stability_score_offset: Annotated[float, Field(ge=0)] = 1.0
    box_nms_thresh: Share = 0.7
    crop_n_layers: Annotated[int, Field(ge=0)] = 0
    coarse_stride: Count = 4
    confident_logit: Annotated[float, Field(gt=0)] = 8.5

    def settings(self) -> EverythingSettings:
        """The same for `pipeline.runtime.everything`."""
        return EverythingSettings(**self.model_dump(exclude={"images", "pictures"}), output_mode="coco_rle")


@dataclass(frozen=True)
class Found:
    """What one mode found in all images."""

    records: list[list[dict[str, Any]]] = field(default_factory=list)
    """Of each image."""
    seconds: list[float] = field(default_factory=list)
    """For each image, encoding included."""

    def rles(self) -> list[list[Rle]]:
        """Of each image the masks alone."""
        return [[record["segmentation"] for record in records] for records in self.records]


def evaluate_everything(
    predictor: Predictor, prepare: Path, validation: Sequence[Photograph], config: EverythingConfig, *, timed: bool
) -> tuple[dict[str, float], dict[str, Any]]:
    """Segment the first images of the validation split in both modes, in turns.

    Args:
        predictor: The model; the images set in it stay.
        prepare: The dataset.
        validation: Its images; at least one has instances.
        config: Section ``evaluate.everything`` of params.yaml.
        timed: Whether ``_s`` is among the metrics: it never repeats byte for byte.

    Returns:
        Metrics: of each mode ``everything_<mode>_ar100`` and ``_ar1000``, ``_miou`` with the annotated objects,
        ``_masks`` per image and ``_s``, the median of seconds per image; and ``everything_miou``: `best_ious` of the
        dense masks among the hierarchical ones, averaged over all dense masks; absent where there is none.
        For everything.json: the masks of the first images.

    Raises:
        InputError: An image is missing or damaged.
    """
    asked = [photograph for photograph in validation if photograph.instances][: config.images]
    settings = config.settings()
    found: dict[str, Found] = {mode: Found() for mode in MODES}
    for photograph in progress(asked, "everything", "image"):
        image = read_image(prepare, photograph)
        for mode, result in found.items():
            begin = time.perf_counter()
            result.records.append(everything(predictor, image, mode, settings))
            result.seconds.append(time.perf_counter() - begin)
    truths = [[instance.rle for instance in photograph.instances] for photograph in asked]
    sizes = [(photograph.height, photograph.width) for photograph in asked]
    metrics = dict[str, float]()
    for mode, result in found.items():
        values = _accuracy(sizes, truths, result) | ({"s": float(np.median(result.seconds))} if timed else {})
        metrics |= {f"everything_{mode}_{name}": value for name, value in values.items()}
    pairs = zip(found["hierarchical"].rles(), found["dense"].rles(), strict=True)
    agreement = np.concatenate([best_ious(among, wanted) for among, wanted in pairs])
    if len(agreement):
        metrics["everything_miou"] = float(agreement.mean())
    return metrics, {"images": [_picture(p, i, found) for i, p in enumerate(asked[: config.pictures])]}


def best_ious(found: Sequence[Rle], wanted: Sequence[Rle]) -> Float[np.ndarray, " n"]:
    """Of each wanted mask the IoU with the mask found that fits it best; 0 where nothing was found."""
    if not found or not wanted:
        return np.zeros(len(wanted))
    one, other = ([rle | {"counts": rle["counts"].encode("ascii")} for rle in rles] for rles in (found, wanted))
    return np.asarray(coco_mask.iou(one, other, [0] * len(other)), dtype=np.float64).max(axis=0)


def _accuracy(sizes: Sequence[Size], truths: Sequence[Sequence[Rle]], result: Found) -> dict[str, float]:
    scored = [[(record["segmentation"], record["predicted_iou"]) for record in image] for image in result.records]
    recall = average_recall(sizes, truths, scored)
    fits = [best_ious(image, truth) for image, truth in zip(result.rles(), truths, strict=True)]
    return {f"ar{number}": value for number, value in recall.items()} | {
        "miou": float(np.concatenate(fits).mean()),
        "masks": float(np.mean([len(image) for image in result.records])),
    }


def _picture(photograph: Photograph, place: int, found: Mapping[str, Found]) -> dict[str, Any]:
    modes = {
        mode: [{key: record[key] for key in _KEPT} for record in result.records[place]]
        for mode, result in found.items()
    }
    return {"image_id": photograph.id, "file_name": photograph.file_name, "modes": modes}
