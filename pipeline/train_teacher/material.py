"""What training images are composed of: photographs with masks, cut-outs, textures and rendered scenes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from pipeline.train_teacher import photographs as photos
from pipeline.train_teacher.frame import Frame, Picture


@dataclass(frozen=True)
class Material:
    """What training images are composed of, beside rendered scenes."""

    photographs: list[Picture]
    """Photographs with masks."""
    cutouts: list[Picture]
    """Objects to paste."""
    backgrounds: list[Picture]


class Shares(NamedTuple):
    """Shares of two kinds of training images; the others are photographs."""

    scenes: float
    """Rendered scenes."""
    collages: float
    """Backgrounds on which cut-outs are pasted."""


def read_material(data: Path, cutouts: Path | None, textures: Sequence[Path]) -> tuple[Material, list[Picture]]:
    """Read pictures into memory.

    Args:
        data: Folder with photographs in ``images/`` and their masks in ``instances.json``, in COCO format.
        cutouts: Folder of PNG files whose alpha channel is the mask of one object.
        textures: Folders of JPEG files without masks.

    Returns:
        The material, and the photographs that are held out: the 40 that preset ``coco`` validates on.

    Raises:
        InputError: A file is missing or invalid.
    """
    train, validation = photos.split(data, "instances.json", "images")
    pictures = photos.read(train)
    material = Material(
        pictures,
        photos.read_cutouts(cutouts) if cutouts else [],
        [*pictures, *(picture for folder in textures for picture in photos.read_backgrounds(folder))],
    )
    return material, photos.read(validation)


def compose(shares: Shares, material: Material, rng: np.random.Generator, index: int, side: int) -> Frame:
    """Compose a training image: a scene, a collage, or photograph ``index``."""
    kind = rng.random()
    if kind < shares.scenes:
        return photos.scene(rng, material.photographs, side)
    if kind < shares.scenes + shares.collages:
        return photos.collage(rng, material.backgrounds, [*material.cutouts, *material.photographs], side)
    return photos.photograph(rng, material.photographs, index, side, material.cutouts)
