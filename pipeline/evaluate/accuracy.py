"""Masks asked for by a ground-truth box and by one click, and how well they fit.

The protocol of EfficientViT-SAM's evaluation: of the three masks the one with the highest predicted IoU counts, it is
compared with the truth at the photograph's own size, and the mean is over instances, not over images. What differs:
boxes and areas are those of the mask itself, not the annotation's ``bbox`` and ``area``; annotations are looked up by
image instead of scanned for each, prompts go through the decoder in batches, and each instance counts exactly once (a
sampler that pads to the number of workers may count some twice).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image, UnidentifiedImageError

from pipeline import masks
from pipeline.data import coco
from pipeline.data.coco import Photograph
from pipeline.errors import InputError
from pipeline.metrics import band_means, iou
from pipeline.progress import progress
from pipeline.runtime import Predictor

PROMPTS = ("box", "click")
REMEDY = "Run `dvc repro --force --single-item prepare`."


@dataclass(frozen=True)
class Scores:
    """What came out, per instance."""

    instances: list[dict[str, Any]]
    """Ids, ``area``, and per prompt ``<prompt>_iou`` and ``<prompt>_predicted_iou``."""
    predictions: list[dict[str, Any]]
    """Ids and per prompt the mask as RLE, of the instances of the first images."""

    def metrics(self) -> dict[str, float]:
        """Mean IoU per prompt, over all instances and by COCO's bands; how many there were."""
        areas = [instance["area"] for instance in self.instances]
        means: dict[str, float] = {"instances": float(len(self.instances))}
        for prompt in PROMPTS:
            means |= band_means(f"{prompt}_miou", [i[f"{prompt}_iou"] for i in self.instances], areas)
        return means


@dataclass(frozen=True)
class _Prediction:
    mask: Bool[np.ndarray, "h w"]
    predicted_iou: float


def photographs(prepare: Path) -> list[Photograph]:
    """The validation images with their instances, by id.

    Raises:
        InputError: They are missing or damaged, or there is not one instance.
    """
    path = prepare / "validation" / "instances.json"
    found = coco.read(path, min_area_px=1).photographs
    if not any(photograph.instances for photograph in found):
        raise InputError(f"{path} has no instance to evaluate with: give prepare a validation split that has some.")
    return found


def read_image(prepare: Path, photograph: Photograph) -> UInt8[np.ndarray, "h w 3"]:
    """The RGB pixels of a validation image.

    Raises:
        InputError: The file is missing, damaged or not of the size that its masks have.
    """
    path = prepare / "validation" / "images" / photograph.file_name
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise InputError(f"{path} cannot be read ({error}). {REMEDY}") from None
    size = (photograph.height, photograph.width)
    if pixels.shape[:2] != size:
        raise InputError(f"{path} is {pixels.shape[:2]} pixels (H, W), its masks are {size}. {REMEDY}")
    return pixels


def evaluate_accuracy(
    predictor: Predictor, prepare: Path, validation: Sequence[Photograph], *, prompts_batch: int, pictures: int
) -> Scores:
    """Ask for every instance of the validation split by box and by click.

    Args:
        predictor: The model.
        prepare: The dataset.
        validation: From `photographs`. Images without instances are not encoded.
        prompts_batch: Prompts decoded at once.
        pictures: Of how many images with instances, counted from the first, masks are kept.

    Raises:
        InputError: An image is missing or damaged.
    """
    asked = [photograph for photograph in validation if photograph.instances]
    scores = Scores([], [])
    for number, photograph in enumerate(progress(asked, "evaluate", "image")):
        predictor.set_image(read_image(prepare, photograph))
        for start in range(0, len(photograph.instances), prompts_batch):
            batch = photograph.instances[start : start + prompts_batch]
            truths = [masks.decode(instance.rle) for instance in batch]
            answers = {"box": _by_box(predictor, truths), "click": _by_click(predictor, truths)}
            for k, (instance, truth) in enumerate(zip(batch, truths, strict=True)):
                ids = {"image_id": photograph.id, "annotation_id": instance.id}
                found = {prompt: answers[prompt][k] for prompt in PROMPTS}
                scores.instances.append(ids | {"area": masks.area(instance.rle)} | _scored(found, truth))
                if number < pictures:
                    scores.predictions.append(ids | {p: masks.encode(found[p].mask) for p in PROMPTS})
    predictor.reset_image()
    return scores


def _by_box(predictor: Predictor, truths: Sequence[Bool[np.ndarray, "h w"]]) -> list[_Prediction]:
    boxes = np.array([masks.box(truth) for truth in truths], np.float32)
    answer = predictor.predict_batch(boxes=boxes, multimask_output=True)
    return list(_best(answer.masks, answer.iou_predictions))


def _by_click(predictor: Predictor, truths: Sequence[Bool[np.ndarray, "h w"]]) -> list[_Prediction]:
    clicks = np.array([[masks.center(truth)] for truth in truths], np.float32)
    labels = np.ones(clicks.shape[:2], np.int64)
    answer = predictor.predict_batch(clicks, labels, multimask_output=True)
    return list(_best(answer.masks, answer.iou_predictions))


def _best(
    found: Bool[np.ndarray, "p c h w"], predicted_ious: np.ndarray[Any, np.dtype[np.floating[Any]]]
) -> Iterator[_Prediction]:
    """Of each prompt's masks the one the model thinks best."""
    for candidates, values in zip(found, predicted_ious, strict=True):
        chosen = int(np.argmax(values))
        yield _Prediction(candidates[chosen], float(values[chosen]))


def _scored(found: Mapping[str, _Prediction], truth: Bool[np.ndarray, "h w"]) -> dict[str, float]:
    scores = {f"{prompt}_iou": iou(answer.mask, truth) for prompt, answer in found.items()}
    return scores | {f"{prompt}_predicted_iou": round(a.predicted_iou, 6) for prompt, a in found.items()}
