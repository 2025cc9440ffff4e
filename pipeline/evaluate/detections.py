"""Masks for a detector's boxes, and their average precision by COCO's and LVIS's rules; the 25 sets of SGinW.

The protocol of EfficientViT-SAM's evaluation (``box_from_detector``): each detection's box is a prompt, its score and
category are kept, and the area that decides a detection's band is its mask's. The detector itself is not run: its
results file, in COCO's format, comes with the data (ViTDet, YOLOv8, Grounding-DINO ...).
"""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Annotated, Any

import numpy as np
from jaxtyping import Float, UInt8
from pydantic import Field
from tqdm import tqdm

from pipeline.core.config import Config
from pipeline.core.errors import InputError
from pipeline.evaluate.average_precision import (
    Detection,
    Truth,
    average_precision,
    most_certain,
    read_detections,
    read_truth,
)
from pipeline.evaluate.images import Result, Run, read_rgb
from pipeline.ops import masks

FIGURES = {
    "AP": "ap", "AP50": "ap50", "AP75": "ap75", "APs": "ap_small", "APm": "ap_medium", "APl": "ap_large",
    "APr": "ap_rare", "APc": "ap_common", "APf": "ap_frequent",
    "AR1": "ar1", "AR10": "ar10", "AR100": "ar100", "AR@300": "ar300",
}  # fmt: skip
"""How `average_precision`'s figures are called in metrics.json."""
SGINW = (
    "Airplane-Parts", "Bottles", "Brain-Tumor", "Chicken", "Cows", "Electric-Shaver", "Elephants", "Fruits", "Garbage",
    "Ginger-Garlic", "Hand", "Hand-Metal", "House-Parts", "HouseHold-Items", "Nutterfly-Squireel", "Phones", "Poles",
    "Puppies", "Rail", "Salmon-Fillet", "Strawberry", "Tablets", "Toolkits", "Trash", "Watermelon",
)  # fmt: skip
"""The sets of Segmentation in the Wild, as their folders are called."""
SGINW_TRUTH = "_annotations_min1cat.coco.json"


class DetectionsConfig(Config):
    """One set of boxes on one dataset."""

    truth: str
    """Annotations in COCO's or LVIS's format."""
    results: str
    """The detector's results in COCO's format."""
    images: Annotated[list[str], Field(min_length=1)]
    """Folders that hold the images; of LVIS also the one that holds train2017 and val2017."""
    lvis: bool = False
    """LVIS's rules: 300 detections; rare, common and frequent categories."""


class SginwConfig(Config):
    """Segmentation in the Wild: 25 small datasets."""

    folder: str
    """Holds each set's folder, with ``valid`` in it."""
    detections: Annotated[str, Field(pattern=r"\{set\}")]
    """The detector's results; ``{set}`` stands for the set's name."""


def files(detections: Mapping[str, DetectionsConfig], sginw: SginwConfig | None) -> list[Path]:
    """The files that decide the figures, those that are there."""
    named = [Path(path) for boxes in detections.values() for path in (boxes.truth, boxes.results)]
    if sginw is not None:
        for name in SGINW:
            named += [Path(sginw.folder) / name / "valid" / SGINW_TRUTH, Path(sginw.detections.replace("{set}", name))]
    return [path for path in named if path.is_file()]


def refuse_unwatched(data: str, detections: Mapping[str, DetectionsConfig], sginw: SginwConfig | None) -> None:
    """See that DVC would notice another results file or other annotations.

    Raises:
        InputError: One of the files that decide the figures is not below ``data``.
    """
    named = [path for boxes in detections.values() for path in (boxes.truth, boxes.results)]
    named += [sginw.folder, sginw.detections] if sginw is not None else []
    for path in named:
        if not Path(os.path.abspath(path)).is_relative_to(os.path.abspath(data)):
            raise InputError(
                f"{path} is not in evaluate.data, which is {data!r}, so DVC would not see it change: put the files of "
                "detections and sginw into one folder and name it there (params.yaml)."
            )


@dataclass(frozen=True)
class _Asked:
    """One image and the boxes on it, in the order of the results file."""

    id: int
    file: Path
    size: tuple[int, int]
    detections: Sequence[Detection]


def evaluate_detections(run: Run, name: str, config: DetectionsConfig) -> dict[str, float] | None:
    """Average precision of the model's masks for a detector's boxes.

    Args:
        run: The model, and what it shares with other evaluators.
        name: Of these boxes in params.yaml.
        config: Where they and their dataset are.

    Returns:
        ``<name>_ap``, ``_ap50``, ``_ap75``, ``_ap_small`` ...; a group without an instance has no figure. None for any
        but the first process.

    Raises:
        InputError: A file is missing or malformed, or a detection has no box.
    """
    found = _figures(run, name, config)
    return None if found is None else {f"{name}_{FIGURES[key]}": v for key, v in found.items() if key in FIGURES}


def evaluate_sginw(run: Run, config: SginwConfig) -> tuple[dict[str, float], dict[str, Any]] | None:
    """Mean over the sets of each one's average precision.

    Returns:
        ``sginw_ap`` and ``sginw_sets``, how many there were; and what each set has, and which ones are missing. None
        for any but the first process.

    Raises:
        InputError: Not one set is there, or a file is malformed.
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
        figures = _figures(run, f"sginw {name}", boxes)
        if figures is None:
            values[name] = float("nan")
        elif "AP" in figures:
            values[name] = figures["AP"]
        else:
            missing[name] = f"{truth} has no instance"
    if not values:
        first = next(iter(missing.values()))
        raise InputError(f"evaluate.sginw: none of the 25 sets is there ({first}): correct the paths in params.yaml.")
    if not run.ranks.first:
        return None
    for name, reason in missing.items():
        tqdm.write(f"left out of sginw: {name}: {reason}", file=sys.stderr)
    mean = float(np.mean(list(values.values())))
    return {"sginw_ap": mean, "sginw_sets": float(len(values))}, {"ap": values, "missing": missing}


def _figures(run: Run, name: str, config: DetectionsConfig) -> dict[str, float] | None:
    """`average_precision`'s figures without those of groups that have no instance."""
    truth = read_truth(Path(config.truth), iou_type="segm", lvis=config.lvis)
    asked = _asked(config, truth)

    def read(image: _Asked) -> UInt8[np.ndarray, "h w 3"]:
        return read_rgb(image.file, image.size, f"It belongs to {config.truth}.")

    def work(image: _Asked) -> Result:
        return {"segmentations": _segment(run, image.detections)}

    results = run.each_image(name, asked, read, work)
    if not run.ranks.first:
        return None
    records = [
        {"image_id": image.id, "category_id": detection.category_id, "score": detection.score, "iscrowd": 0}
        | {"segmentation": rle, "area": float(masks.area(rle))}
        for image, result in zip(asked, results, strict=True)
        for detection, rle in zip(image.detections, result["segmentations"], strict=True)
    ]
    numbered = [record | {"id": number} for number, record in enumerate(records, start=1)]
    return {key: value for key, value in average_precision(truth, numbered).items() if value >= 0}


def _asked(config: DetectionsConfig, truth: Truth) -> list[_Asked]:
    """The images that have detections, by id; of LVIS only those detections that count."""
    path, by_image = Path(config.results), dict[int, list[Detection]]()
    for number, detection in enumerate(read_detections(path)):
        where = f"{path}: detection {number} (counted from 0)"
        if detection.image_id not in truth.images:
            raise InputError(f"{where}: {config.truth} has no image {detection.image_id}: take those it was made for.")
        if detection.category_id not in truth.categories:
            raise InputError(
                f"{where}: {config.truth} has no category {detection.category_id}: map it to one of theirs."
            )
        if detection.bbox is None or min(detection.bbox[2:]) < 0:
            raise InputError(f"{where}: its bbox must be x, y, width and height, not {detection.bbox}.")
        by_image.setdefault(detection.image_id, []).append(detection)
    asked = []
    for number in sorted(by_image):
        image, detections = truth.images[number], by_image[number]
        counted = most_certain(detections, lambda d: d.score) if truth.lvis else detections
        asked.append(_Asked(number, _file(config, image), (image["height"], image["width"]), counted))
    return asked


def _file(config: DetectionsConfig, image: dict[str, Any]) -> Path:
    """Where an image is: by its file name, or by the end of its ``coco_url``, with or without train2017 and val2017."""
    url = PurePosixPath(image["coco_url"] or "").parts[-2:]
    names = [name for name in (image["file_name"], "/".join(url), *url[-1:]) if name]
    for name in names:
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts:
            raise InputError(
                f"{config.truth}: image {image['id']} has file_name {name!r}: it must lie inside its folder."
            )
        for folder in config.images:
            if (Path(folder) / pure).is_file():
                return Path(folder) / pure
    what = names[0] if names else "without file_name and coco_url"
    raise InputError(
        f"{config.truth}: image {image['id']} ({what}) is in none of {', '.join(config.images)}: "
        "list its folder (LVIS needs that of train2017 and val2017)."
    )


def _segment(run: Run, detections: Sequence[Detection]) -> list[masks.Rle]:
    """Masks of the boxes on the image that is set."""
    boxes = np.array([_corners(detection) for detection in detections])
    codes = []
    for start in range(0, len(boxes), run.prompts_batch):
        best = run.predictor.predict_best(boxes=boxes[start : start + run.prompts_batch])
        codes += [run.pool.submit(masks.encode, mask) for mask in best.masks]
    return [code.result() for code in codes]


def _corners(detection: Detection) -> Float[np.ndarray, "4"]:
    x, y, width, height = detection.bbox or [0.0, 0.0, 0.0, 0.0]
    return np.array([x, y, x + width, y + height])
