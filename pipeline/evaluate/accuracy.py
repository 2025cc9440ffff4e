"""Mask accuracy per prompt on the validation split, and calibration of the predicted IoU.

Means are over instances, not images, and each instance counts exactly once. Prompts, boxes and areas are those of
EfficientViT-SAM's evaluation (`pipeline.evaluate.validation`). Differences: annotations are indexed by image; no
sampler pads to the number of workers, which would count some instances twice.
"""

from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool

from pipeline.core.errors import InputError
from pipeline.core.untrusted import json_file
from pipeline.data.coco import Instance, Photograph
from pipeline.evaluate.images import Result, Run
from pipeline.evaluate.prompting import PROMPTS, SAME_PROMPTS, Answer, ask
from pipeline.evaluate.validation import ValidationSet, area_of, box_of
from pipeline.ops import masks, metrics
from pipeline.ops.metrics import Bin

AT_ONCE = 64
"""Instances of an image whose masks are in memory at once."""
BOUNDARY_SHARE = 0.02
"""Width of a boundary, as a share of the image's diagonal (Cheng et al. 2021)."""
DIGITS = 6

TeacherMasks = Mapping[int, Mapping[str, masks.Rle]]
"""A model's masks by annotation id and prompt."""


@dataclass(frozen=True)
class Scores:
    """Results per instance."""

    instances: list[dict[str, Any]]
    """Ids, ``area``, and per prompt ``<prompt>_iou`` and ``<prompt>_predicted_iou``; for box and click also
    ``_boundary_iou`` and, if a teacher's masks are available, ``_agreement``."""
    predictions: list[dict[str, Any]]
    """Ids and the RLE masks for box and click, of the instances of the first images."""

    def metrics(self) -> dict[str, float]:
        """Means over all instances and per COCO size band, calibration errors, and the number of instances."""
        areas = [instance["area"] for instance in self.instances]
        means: dict[str, float] = {"instances": float(len(self.instances))}
        for prompt in self._prompts():
            means |= metrics.band_means(f"{prompt}_miou", self._values(f"{prompt}_iou"), areas)
        for name in (f"{prompt}_{metric}" for prompt in SAME_PROMPTS for metric in ("boundary_iou", "agreement")):
            if values := self._values(name):
                means[name] = float(np.mean(values))
        bins = self.calibration()
        return means | {f"{p}_calibration_error": metrics.calibration_error(bins[p]) for p in SAME_PROMPTS}

    def calibration(self) -> dict[str, list[Bin]]:
        """Predicted against true IoU per prompt, in ten bins."""
        return {
            prompt: metrics.calibration(self._values(f"{prompt}_predicted_iou"), self._values(f"{prompt}_iou"))
            for prompt in self._prompts()
        }

    def _prompts(self) -> list[str]:
        return [prompt for prompt in PROMPTS if f"{prompt}_iou" in self.instances[0]]

    def _values(self, key: str) -> list[float]:
        return [instance[key] for instance in self.instances if key in instance]


def read_teacher_masks(path: Path) -> TeacherMasks:
    """Read the teacher's masks from its evaluation.

    Raises:
        InputError: The file is missing or damaged.
    """
    remedy = "Run `dvc repro --force --single-item evaluate_teacher`."
    entries = json_file.load(path, remedy=remedy)
    try:
        return {entry["annotation_id"]: {p: entry[p] for p in SAME_PROMPTS} for entry in entries}
    except (LookupError, TypeError) as error:
        raise InputError(f"{path} cannot be read ({error}). {remedy}") from None


def evaluate_accuracy(
    run: Run,
    validation: ValidationSet,
    photographs: Sequence[Photograph],
    *,
    pictures: int,
    with_mask_input: bool,
    teacher: TeacherMasks | None = None,
    keep_all: bool = False,
) -> Scores:
    """Predict every instance of a validation set from every prompt, and score the masks.

    Args:
        run: The model and the resources shared with other evaluators.
        validation: The set.
        photographs: Its images and the instances to count. Images without instances are not encoded.
        pictures: Number of images, the first with instances, whose masks are stored.
        with_mask_input: Evaluate also with the previous mask as a prompt.
        teacher: The teacher's masks, for agreement.
        keep_all: Store the masks of all images.

    Raises:
        InputError: An image is missing or damaged, or the teacher's masks lack an instance.
    """
    annotated = [photograph for photograph in photographs if photograph.instances]
    keep = {photograph.id for photograph in (annotated if keep_all else annotated[:pictures])}

    def work(photograph: Photograph) -> Result:
        return _one_image(run, photograph, with_mask_input=with_mask_input, teacher=teacher, keep=photograph.id in keep)

    results = run.each_image(f"{validation.prefix}prompts", annotated, validation.read_image, work)
    instances = [instance for result in results for instance in result["instances"]]
    return Scores(instances, [prediction for result in results for prediction in result["predictions"]])


def _one_image(
    run: Run, photograph: Photograph, *, with_mask_input: bool, teacher: TeacherMasks | None, keep: bool
) -> Result:
    """Score all instances of the current image, in groups to bound memory."""
    result: Result = {"instances": [], "predictions": []}
    for start in range(0, len(photograph.instances), AT_ONCE):
        group = photograph.instances[start : start + AT_ONCE]
        truths = list(run.pool.map(_truth, group))
        scored: list[list[Future[Result]]] = [[] for _ in group]

        def answered(
            i: int, answer: Answer, truths: Sequence[Any] = truths, scored: Any = scored, s: int = start
        ) -> None:
            instance = photograph.instances[s + i]
            scored[i].append(run.pool.submit(_score, answer, truths[i], _teacher_mask(teacher, instance, answer), keep))

        boxes = [box_of(instance, truth) for instance, truth in zip(group, truths, strict=True)]
        ask(run.predictor, truths, run.pool, run.prompts_batch, with_mask_input, answered, boxes)
        for instance, futures in zip(group, scored, strict=True):
            ids = {"image_id": photograph.id, "annotation_id": instance.id}
            values: Result = {}
            for future in futures:
                values |= future.result()
            predictions = {p: values.pop(f"{p}_mask") for p in SAME_PROMPTS if f"{p}_mask" in values}
            result["instances"].append(ids | {"area": area_of(instance)} | values)
            if predictions:
                result["predictions"].append(ids | predictions)
    return result


def _truth(instance: Instance) -> Bool[np.ndarray, "h w"]:
    return np.ascontiguousarray(masks.decode(instance.rle))


def _teacher_mask(teacher: TeacherMasks | None, instance: Instance, answer: Answer) -> masks.Rle | None:
    """The teacher's mask for the same prompt; None if there is none or the prompt depends on the model."""
    if teacher is None or answer.prompt not in SAME_PROMPTS:
        return None
    if instance.id not in teacher:
        raise InputError(
            f"the teacher's masks lack annotation {instance.id}: "
            "run `dvc repro --force --single-item evaluate_teacher`."
        )
    return teacher[instance.id][answer.prompt]


def _score(answer: Answer, truth: Bool[np.ndarray, "h w"], teacher: masks.Rle | None, keep: bool) -> Result:
    """Metrics of one answer; with ``keep`` also its RLE as ``<prompt>_mask``."""
    name, mask = answer.prompt, answer.mask
    if not np.isfinite(answer.predicted_iou):
        raise InputError(f"the model predicts an IoU of {answer.predicted_iou}: its weights are damaged; rebuild it.")
    values: Result = {
        f"{name}_iou": metrics.iou(mask, truth),
        f"{name}_predicted_iou": round(answer.predicted_iou, DIGITS),
    }
    if name in SAME_PROMPTS:
        width = max(1, round(BOUNDARY_SHARE * float(np.hypot(*truth.shape))))
        edges = (masks.boundary(mask, width), masks.boundary(truth, width))
        values[f"{name}_boundary_iou"] = metrics.iou(*edges)
        if teacher is not None:
            values[f"{name}_agreement"] = metrics.iou(mask, masks.decode(teacher))
        if keep:
            values[f"{name}_mask"] = masks.encode(mask)
    return values
