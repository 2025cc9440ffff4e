"""Output formats: COCO json, label maps as PNG, YOLO segmentation; and overlays for people to look at."""

import json
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import cv2
import numpy as np
import yaml
from jaxtyping import UInt8
from PIL import Image

from pipeline.core.atomic import replacing
from pipeline.core.errors import InputError
from pipeline.data.photograph import encode_jpeg
from pipeline.ops import masks
from pipeline.ops.outlines import polygons
from pipeline.predict.segment import Masks

LABELS, OVERLAYS, LINKS = "labels", "overlays", "images"
"""Folders of results: per-image labels, overlays, and YOLO's links to the images."""
INSTANCES, OBJECTS, DATA = "instances.json", "objects.json", "data.yaml"
MAX_OBJECTS = 2**16 - 1
_OPACITY = 0.5
_GOLDEN_ANGLE = 137.508
"""Successive hues in degrees, so that neighbours in the list differ."""


@dataclass(frozen=True)
class Results:
    """Finished images, read one at a time."""

    names: Sequence[str]
    ids: Mapping[str, int]
    read: Callable[[str], dict[str, Any]]
    """Result of one image: ``height``, ``width``, ``exif_transposed`` and ``masks``."""
    categories: list[dict[str, Any]]
    root: Path
    """Folder of the images."""

    def numbered(self) -> Iterator[tuple[str, int, dict[str, Any]]]:
        """Name, annotation id and annotation of each mask."""
        number = 0
        for name in self.names:
            for annotation in self.read(name)["masks"]:
                number += 1
                yield name, number, annotation


def stems(names: Sequence[str], *, unique: bool) -> dict[str, str]:
    """Relative names of an image's results, without suffix.

    Args:
        names: Relative image names.
        unique: Refuse images that differ in their suffix only; else all results keep the image's suffix in their name.

    Raises:
        InputError: Two images would share a name.
    """
    plain = {name: PurePosixPath(name).with_suffix("").as_posix() for name in names}
    counts = Counter(plain.values())
    shared = [name for name in names if counts[plain[name]] > 1]
    if shared and unique:
        raise InputError(f"{shared[0]} and {shared[1]} would share one label file: rename one of them.")
    return {name: name for name in names} if shared else plain


def write_label_map(path: Path, annotations: Masks, size: tuple[int, int], categories: list[dict[str, Any]]) -> None:
    """Write a 16-bit PNG: 0 is background, k the k-th mask; smaller masks cover larger ones."""
    if len(annotations) > MAX_OBJECTS:
        raise InputError(f"{len(annotations)} masks do not fit into a label map ({MAX_OBJECTS}): use --format coco.")
    labels = np.zeros(size, np.uint16)
    for index in _largest_first(annotations):
        labels[masks.decode(annotations[index]["segmentation"])] = index + 1
    with replacing(path) as draft:
        Image.fromarray(labels).save(draft, "PNG")


def write_yolo_labels(path: Path, annotations: Masks, size: tuple[int, int], categories: list[dict[str, Any]]) -> None:
    """Write YOLO segmentation labels: class and normalised polygon, one line per connected part; holes are lost."""
    classes = {category["id"]: index for index, category in enumerate(categories)}
    scale = np.array([size[1], size[0]], dtype=np.float64)
    lines = []
    for annotation in annotations:
        for polygon in polygons(masks.decode(annotation["segmentation"])):
            values = " ".join(f"{value:.6f}" for value in (polygon / scale).ravel())
            lines.append(f"{classes[annotation['category_id']]} {values}\n")
    with replacing(path) as draft:
        draft.write_text("".join(lines))


def write_overlay(path: Path, annotations: Masks, pixels: UInt8[np.ndarray, "h w 3"]) -> None:
    """Write the image with coloured masks and their outlines, as JPEG."""
    shown = pixels.copy()
    thickness = max(1, round(max(shown.shape) / 500))
    for index in _largest_first(annotations):
        rle = annotations[index]["segmentation"]
        x, y, width, height = (int(value) for value in annotations[index]["bbox"])
        window = slice(y, y + height), slice(x, x + width)
        mask, colour = masks.decode(rle)[window], _colour(index)
        part = shown[window]
        part[mask] = (part[mask] * (1 - _OPACITY) + np.array(colour) * _OPACITY).astype(np.uint8)
        contours, _ = cv2.findContours(mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(shown, contours, -1, colour, thickness, offset=(x, y))
    with replacing(path) as draft:
        draft.write_bytes(encode_jpeg(Image.fromarray(shown), quality=90))


def _largest_first(annotations: Masks) -> list[int]:
    return sorted(range(len(annotations)), key=lambda index: -annotations[index]["area"])


def _colour(index: int) -> tuple[int, int, int]:
    """RGB of the ``index``-th mask."""
    hue = index * _GOLDEN_ANGLE % 360 / 2  # OpenCV's hue has 180 steps
    pixel = np.array([[[hue, 200, 255]]], np.uint8)
    red, green, blue = cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0].tolist()
    return red, green, blue


def write_instances(out: Path, results: Results) -> None:
    """Write ``instances.json`` in COCO's format, image by image."""
    with replacing(out / INSTANCES) as draft, draft.open("w") as stream:
        stream.write('{"info": {"description": "predicted masks"}, "licenses": [],\n"images": [')
        for index, name in enumerate(results.names):
            result = results.read(name)
            size = {key: result[key] for key in ("height", "width", "exif_transposed")}
            record = {"id": results.ids[name], "file_name": name} | size
            stream.write(f"{',' * (index > 0)}\n{json.dumps(record)}")
        stream.write('],\n"annotations": [')
        for name, number, annotation in results.numbered():
            record = {"id": number, "image_id": results.ids[name]} | annotation
            stream.write(f"{',' * (number > 1)}\n{json.dumps(record)}")
        stream.write(f'],\n"categories": {json.dumps(results.categories)}}}\n')


def write_objects(out: Path, results: Results) -> None:
    """Write ``objects.json``: for each label map what its values are."""
    label_maps = stems(results.names, unique=False)
    with replacing(out / OBJECTS) as draft, draft.open("w") as stream:
        stream.write(f'{{"categories": {json.dumps(results.categories)},\n"images": [')
        for index, name in enumerate(results.names):
            values = [
                {"value": value} | {key: entry for key, entry in annotation.items() if key != "segmentation"}
                for value, annotation in enumerate(results.read(name)["masks"], start=1)
            ]
            record = {"file_name": name, "label_map": f"{LABELS}/{label_maps[name]}.png", "objects": values}
            stream.write(f"{',' * (index > 0)}\n{json.dumps(record)}")
        stream.write("]}\n")


def write_data_yaml(out: Path, results: Results) -> None:
    """Write ``data.yaml``, and links to the images beside the labels, where YOLO's readers look for them."""
    for name in results.names:
        link, target = out / LINKS / name, (results.root / name).resolve()
        link.parent.mkdir(parents=True, exist_ok=True)
        with replacing(link) as draft:
            draft.unlink(missing_ok=True)
            draft.symlink_to(os.path.relpath(target, link.parent.resolve()))
    names = {index: category["name"] for index, category in enumerate(results.categories)}
    with replacing(out / DATA) as draft:
        draft.write_text(yaml.safe_dump({"train": LINKS, "val": LINKS, "names": names}, sort_keys=False))


@dataclass(frozen=True)
class Format:
    """What is written for each image, and at the end."""

    summary: str
    """File that `finish` writes."""
    finish: Callable[[Path, Results], None]
    suffix: str = ""
    """Suffix of an image's label file; empty for none."""
    write_labels: Callable[[Path, Masks, tuple[int, int], list[dict[str, Any]]], None] | None = None
    unique_stems: bool = False


FORMATS: Mapping[str, Format] = {
    "coco": Format(INSTANCES, write_instances),
    "png": Format(OBJECTS, write_objects, ".png", write_label_map),
    "yolo": Format(DATA, write_data_yaml, ".txt", write_yolo_labels, unique_stems=True),
}
