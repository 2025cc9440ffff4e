"""Write composed training images as a dataset in COCO format, from which students are distilled."""

import json
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np

from pipeline.core.errors import InputError
from pipeline.core.progress import progress
from pipeline.models.bundled_v2 import IMAGE_SIZE
from pipeline.ops import masks
from pipeline.train_teacher import photographs as photos
from pipeline.train_teacher.frame import Picture
from pipeline.train_teacher.material import Material, Shares, compose, read_material
from pipeline.train_teacher.monitor import SCENES_SEED, subject
from pipeline.train_teacher.validation import held_out_scenes

SHARES = Shares(scenes=0.3, collages=0.3)
JPEG_QUALITY = 95
SCENES = 200
"""Held-out scenes that are written to validate on."""

Annotated = tuple[np.ndarray, list[np.ndarray]]
"""An image, uint8 ``(h, w, 3)``, and the boolean masks ``(h, w)`` of its instances."""


def write_composed(
    data: Path, out: Path, count: int, *, cutouts: Path | None, textures: Sequence[Path], seed: int
) -> str:
    """Write three datasets: ``composed`` to train on, and ``photographs`` and ``scenes``, which no training has seen.

    Args:
        data: Folder of photographs with masks, see `read_material`. The 40 held-out ones become ``photographs``.
        out: Directory to create; each dataset is a folder of images and a json beside it.
        count: Number of composed images, of the bundled teacher's input size.
        cutouts: Folder of PNG files whose alpha channel is the mask of one object.
        textures: Folders of JPEG files without masks.
        seed: Seed of all randomness.

    Returns:
        What was written, in one line.

    Raises:
        InputError: ``out`` exists, or a source is missing or invalid.
    """
    if out.exists():
        raise InputError(f"{out} exists: name a new directory, or delete it.")
    material, validation = read_material(data, cutouts, textures)
    draft = out.with_name(f"{out.name}.part")
    shutil.rmtree(draft, ignore_errors=True)
    sets: dict[str, Iterator[Annotated]] = {
        "photographs": _whole(validation),
        "scenes": ((s.image, s.masks) for s in held_out_scenes(SCENES, SCENES_SEED, photos.SCENE_SIDE)),
        "composed": iter(progress(_composed(material, count, seed), "compose", "image", total=count)),
    }
    counts = [(name, _write(draft, name, images)) for name, images in sets.items()]
    draft.rename(out)
    return f"{out}: " + ", ".join(f"{name} {images} images, {objects} masks" for name, (images, objects) in counts)


def _composed(material: Material, count: int, seed: int) -> Iterator[Annotated]:
    for number in range(count):
        rng = np.random.default_rng((seed, number))
        frame = compose(SHARES, material, rng, number % len(material.photographs), IMAGE_SIZE)
        yield from _whole([Picture(photos.developed(rng, frame.image), frame.instances)])


def _whole(pictures: Iterable[Picture]) -> Iterator[Annotated]:
    for picture in pictures:
        whole = subject(picture)
        yield whole.image, whole.masks


def _write(folder: Path, name: str, content: Iterator[Annotated]) -> tuple[int, int]:
    """Write a dataset; return its numbers of images and of masks."""
    (folder / name).mkdir(parents=True)
    images, annotations = list[dict[str, object]](), list[dict[str, object]]()
    for number, (image, instances) in enumerate(content):
        file = f"{number:06d}.jpg"
        cv2.imwrite(str(folder / name / file), image[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY])
        images.append({"id": number, "file_name": file, "height": image.shape[0], "width": image.shape[1]})
        for mask in instances:
            x1, y1, x2, y2 = (float(v) for v in masks.box(mask))
            annotations.append(
                {
                    "id": len(annotations),
                    "image_id": number,
                    "category_id": 1,
                    "iscrowd": 0,
                    "bbox": [x1, y1, x2 - x1, y2 - y1],
                    "area": int(mask.sum()),
                    "segmentation": masks.encode(mask),
                }
            )
    dataset = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}
    (folder / f"{name}.json").write_text(json.dumps(dataset))
    return len(images), len(annotations)
