"""Average precision of masks prompted by a detector's boxes, by COCO's and LVIS's rules; the 25 SGinW datasets.

Protocol of EfficientViT-SAM's evaluation (``box_from_detector``): each detected box is a prompt and keeps its score and
category; the predicted mask's area determines the size band. The detector itself does not run: its results file in COCO
format comes with the data (ViTDet, YOLOv8, Grounding-DINO ...).
"""

import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float, UInt8
from pydantic import Field
from tqdm import tqdm

from pipeline.core.artifact import file_sha256
from pipeline.core.config import Config
from pipeline.core.errors import InputError
from pipeline.core.untrusted.json_file import shown
from pipeline.data.coco import relative_name
from pipeline.evaluate.average_precision import (
    Detection,
    Truth,
    average_precision,
    most_certain,
    read_detections,
    read_truth,
)
from pipeline.evaluate.baselines import TRIVIAL, TrivialMask
from pipeline.evaluate.images import Result, Run, read_rgb
from pipeline.ops import masks

FIGURES = {
    "AP": "ap", "AP50": "ap50", "AP75": "ap75", "APs": "ap_small", "APm": "ap_medium", "APl": "ap_large",
    "APr": "ap_rare", "APc": "ap_common", "APf": "ap_frequent",
    "AR1": "ar1", "AR10": "ar10", "AR100": "ar100", "AR@300": "ar300",
}  # fmt: skip
"""Names in metrics.json of `average_precision`'s keys."""
SGINW = (
    "Airplane-Parts", "Bottles", "Brain-Tumor", "Chicken", "Cows", "Electric-Shaver", "Elephants", "Fruits", "Garbage",
    "Ginger-Garlic", "Hand", "Hand-Metal", "House-Parts", "HouseHold-Items", "Nutterfly-Squireel", "Phones", "Poles",
    "Puppies", "Rail", "Salmon-Fillet", "Strawberry", "Tablets", "Toolkits", "Trash", "Watermelon",
)  # fmt: skip
"""Folder names of the Segmentation in the Wild datasets."""
SGINW_TRUTH = "_annotations_min1cat.coco.json"


class DetectionsConfig(Config):
    """A detector's boxes on one dataset."""

    truth: str
    """Annotations in COCO's or LVIS's format."""
    results: str
    """The detector's results in COCO's format."""
    images: Annotated[list[str], Field(min_length=1)]
    """Folders with the images; for LVIS also the parent of train2017 and val2017."""
    lvis: bool = False
    """Use LVIS's rules: 300 detections per image; rare, common and frequent categories."""


class SginwConfig(Config):
    """Segmentation in the Wild: 25 small datasets."""

    folder: str
    """Folder with one subfolder per dataset, each with ``valid`` in it."""
    detections: Annotated[str, Field(pattern=r"\{set\}")]
    """The detector's results files; ``{set}`` is replaced by the dataset's name."""


def files(detections: Mapping[str, DetectionsConfig], sginw: SginwConfig | None) -> list[Path]:
    """The existing annotation and results files that the metrics depend on."""
    paths = [Path(path) for boxes in detections.values() for path in (boxes.truth, boxes.results)]
    if sginw is not None:
        for name in SGINW:
            paths += [Path(sginw.folder) / name / "valid" / SGINW_TRUTH, Path(sginw.detections.replace("{set}", name))]
    return [path for path in paths if path.is_file()]


def require_tracked(data: str, detections: Mapping[str, DetectionsConfig], sginw: SginwConfig | None) -> None:
    """Check that DVC tracks all annotation and results files.

    Raises:
        InputError: A file that the metrics depend on is outside ``data``.
    """
    paths = [path for boxes in detections.values() for path in (boxes.truth, boxes.results)]
    paths += [sginw.folder, sginw.detections] if sginw is not None else []
    for path in paths:
        if not Path(os.path.abspath(path)).is_relative_to(os.path.abspath(data)):
            raise InputError(
                f"{path} is not in evaluate.data ({data!r}), so DVC does not track it: put the files of detections and "
                "sginw into one folder and set evaluate.data to it (params.yaml)."
            )


def describe(config: DetectionsConfig) -> dict[str, object]:
    """Name, digest of the annotations, and numbers of images and instances of a detector's dataset."""
    truth = read_truth(Path(config.truth), iou_type="segm", lvis=config.lvis)
    return {
        "name": Path(config.truth).stem,
        "protocol": "published",
        "digest": (digest := file_sha256(Path(config.truth))),
        "source_digest": digest,
        "images": len(truth.images),
        "annotated_images": len({annotation["image_id"] for annotation in truth.annotations}),
        "instances": len(truth.annotations),
    }


@dataclass(frozen=True)
class _PromptedImage:
    """An image and its detections, in the order of the results file."""

    id: int
    file: Path
    size: tuple[int, int]
    detections: Sequence[Detection]


def evaluate_detections(run: Run, name: str, config: DetectionsConfig) -> dict[str, float] | None:
    """Average precision of the model's masks for a detector's boxes.

    Args:
        run: The model and the resources shared with other evaluators.
        name: Name of these boxes in params.yaml, the prefix of the metrics.
        config: Paths of the boxes and their dataset.

    Returns:
        ``<name>_ap``, ``_ap50``, ``_ap75``, ``_ap_small`` ..., without groups that have no instance. None on processes
        other than the first.

    Raises:
        InputError: A file is missing or malformed, or a detection has no box.
    """
    values = _average_precision(run, name, config)
    return None if values is None else {f"{name}_{FIGURES[key]}": v for key, v in values.items() if key in FIGURES}


def evaluate_sginw(run: Run, config: SginwConfig) -> tuple[dict[str, float], dict[str, Any]] | None:
    """Mean average precision over the SGinW datasets.

    Returns:
        Metrics ``sginw_ap`` and ``sginw_sets``, the number of datasets evaluated; and for sginw.json the AP per dataset
        and the missing datasets. None on processes other than the first.

    Raises:
        InputError: No dataset is available, or a file is malformed.
    """
    values, missing = dict[str, float](), dict[str, str]()
    for name in SGINW:
        folder = Path(config.folder) / name / "valid"
        truth, results = folder / SGINW_TRUTH, Path(config.detections.replace("{set}", name))
        absent = [path for path in (truth, results) if not path.is_file()]
        if absent:
            missing[name] = f"{absent[0]} does not exist"
            continue
        boxes = DetectionsConfig(truth=str(truth), results=str(results), images=[str(folder)], lvis=False)
        result = _average_precision(run, f"sginw {name}", boxes)
        if result is None:
            values[name] = float("nan")
        elif "AP" in result:
            values[name] = result["AP"]
        else:
            missing[name] = f"{truth} has no instance"
    if not values:
        first = next(iter(missing.values()))
        raise InputError(f"evaluate.sginw: none of the 25 datasets exists ({first}): correct the paths in params.yaml.")
    if not run.ranks.first:
        return None
    for name, reason in missing.items():
        tqdm.write(f"sginw: skipped {name}: {reason}", file=sys.stderr)
    mean = float(np.mean(list(values.values())))
    return {"sginw_ap": mean, "sginw_sets": float(len(values))}, {"ap": values, "missing": missing}


def _average_precision(run: Run, name: str, config: DetectionsConfig) -> dict[str, float] | None:
    """`average_precision` of the predicted masks, without groups that have no instance."""
    truth = read_truth(Path(config.truth), iou_type="segm", lvis=config.lvis)
    images = _prompted_images(config, truth)

    def read(image: _PromptedImage) -> UInt8[np.ndarray, "h w 3"]:
        return read_rgb(image.file, image.size, f"It belongs to {config.truth}.")

    def work(image: _PromptedImage) -> Result:
        return {"segmentations": _segment(run, image.detections)}

    results = run.each_image(f"boxes {name}", images, read, work)
    if not run.ranks.first:
        return None
    return _precision(truth, images, [result["segmentations"] for result in results])


def trivial_detections(config: DetectionsConfig, name: str, pool: Executor) -> dict[str, dict[str, float]]:
    """What `evaluate_detections` gives for trivial masks of the same boxes.

    Args:
        config: Paths of the boxes and their dataset.
        name: Name of these boxes in params.yaml, the prefix of the metrics.
        pool: Executor that encodes masks in parallel.

    Returns:
        The metrics by predictor, ``filled_box`` and ``ellipse``.
    """
    truth = read_truth(Path(config.truth), iou_type="segm", lvis=config.lvis)
    images = _prompted_images(config, truth)
    scores = {}
    for predictor, draw in TRIVIAL.items():

        def segment(image: _PromptedImage, draw: TrivialMask = draw) -> list[masks.Rle]:
            corners = (_corners(detection).tolist() for detection in image.detections)
            return [masks.encode(draw((x1, y1, x2, y2), image.size)) for x1, y1, x2, y2 in corners]

        values = _precision(truth, images, list(pool.map(segment, images)))
        scores[predictor] = {f"{name}_{FIGURES[key]}": value for key, value in values.items() if key in FIGURES}
    return scores


def _precision(
    truth: Truth, images: Sequence[_PromptedImage], segmentations: Sequence[Sequence[masks.Rle]]
) -> dict[str, float]:
    """`average_precision` of the masks of each image's detections, without groups that have no instance."""
    records = [
        {"image_id": image.id, "category_id": detection.category_id, "score": detection.score, "iscrowd": 0}
        | {"segmentation": rle, "area": float(masks.area(rle))}
        for image, rles in zip(images, segmentations, strict=True)
        for detection, rle in zip(image.detections, rles, strict=True)
    ]
    numbered = [record | {"id": number} for number, record in enumerate(records, start=1)]
    return {key: value for key, value in average_precision(truth, numbered).items() if value >= 0}


def _prompted_images(config: DetectionsConfig, truth: Truth) -> list[_PromptedImage]:
    """The images with detections, ordered by id; for LVIS only the detections that are scored."""
    path, by_image = Path(config.results), dict[int, list[Detection]]()
    for number, detection in enumerate(read_detections(path)):
        location = f"{path}: detection {number} (counted from 0)"
        if detection.image_id not in truth.images:
            raise InputError(
                f"{location}: {config.truth} has no image {detection.image_id}: use the annotations it was made for."
            )
        if detection.category_id not in truth.categories:
            raise InputError(
                f"{location}: {config.truth} has no category {detection.category_id}: map it to one of its categories."
            )
        if detection.bbox is None:
            raise InputError(f"{location}: its bbox must be x, y, width and height, not None.")
        by_image.setdefault(detection.image_id, []).append(detection)
    images = []
    for number in sorted(by_image):
        image, detections = truth.images[number], by_image[number]
        scored = most_certain(detections, lambda d: d.score) if truth.lvis else detections
        images.append(_PromptedImage(number, _file(config, image), (image["height"], image["width"]), scored))
    return images


def _file(config: DetectionsConfig, image: dict[str, Any]) -> Path:
    """Path of an image, from its ``file_name`` or the end of its ``coco_url`` (train2017 and val2017 optional)."""
    url = PurePosixPath(image["coco_url"] or "").parts[-2:]
    names = [name for name in (image["file_name"], "/".join(url), *url[-1:]) if name]
    for name in names:
        relative = relative_name(name)
        if relative is None:
            raise InputError(
                f"{config.truth}: image {image['id']} has file_name {shown(name)}: it must lie inside its folder."
            )
        for folder in config.images:
            if (Path(folder) / relative).is_file():
                return Path(folder) / relative
    name = names[0] if names else "without file_name and coco_url"
    raise InputError(
        f"{config.truth}: image {image['id']} ({name}) is in none of {', '.join(config.images)}: "
        "list its folder (for LVIS the parent of train2017 and val2017)."
    )


def _segment(run: Run, detections: Sequence[Detection]) -> list[masks.Rle]:
    """RLE masks for the boxes on the current image."""
    boxes = np.array([_corners(detection) for detection in detections])
    encodings = []
    for start in range(0, len(boxes), run.prompts_batch):
        best = run.predictor.predict_best(boxes=boxes[start : start + run.prompts_batch])
        encodings += [run.pool.submit(masks.encode, mask) for mask in best.masks]
    return [encoding.result() for encoding in encodings]


def _corners(detection: Detection) -> Float[np.ndarray, "4"]:
    x, y, width, height = detection.bbox or [0.0, 0.0, 0.0, 0.0]
    return np.array([x, y, x + width, y + height])
