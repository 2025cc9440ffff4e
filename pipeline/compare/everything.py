"""Overlays of everything mode: all masks of an image, by dense and by hierarchical sampling."""

import colorsys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from pipeline.compare.evaluations import Evaluation
from pipeline.compare.pictures import Tile, as_uri, read_image
from pipeline.ops import masks

_WIDTH = 320
_OPACITY = 0.55
_TURN = 0.61803398875
"""Step of the hue from mask to mask, the golden ratio, so that consecutive masks differ in colour."""


def overlays(prepare: Path, evaluations: Sequence[Evaluation]) -> list[list[Tile]]:
    """Draw, for each image and mode of everything mode, a column: the photograph, and each model's masks.

    Raises:
        InputError: A photograph is missing or damaged.
    """
    names = {image["image_id"]: image["file_name"] for evaluation in evaluations for image in evaluation.everything}
    columns = []
    for number, name in names.items():
        image = read_image(prepare / "validation" / "images" / name)
        by_model = [_modes(evaluation, number) for evaluation in evaluations]
        for mode in dict.fromkeys(mode for modes in by_model for mode in modes):
            tiles = [Tile(mode, None, as_uri(_small(image)))]
            for evaluation, modes in zip(evaluations, by_model, strict=True):
                records = modes.get(mode)
                drawn = _small(image if records is None else painted(image, records))
                tiles.append(Tile(_caption(mode, records), None, as_uri(drawn), evaluation.name))
            columns.append(tiles)
    return columns


def _modes(evaluation: Evaluation, number: int) -> Mapping[str, Any]:
    """Records of each mode for an image; empty if the evaluation has none."""
    return next((image["modes"] for image in evaluation.everything if image["image_id"] == number), {})


def _caption(mode: str, records: Sequence[Any] | None) -> str:
    if records is None:
        return "not measured"
    return f"{mode}: {len(records)} {'mask' if len(records) == 1 else 'masks'}"


def painted(image: UInt8[np.ndarray, "h w 3"], records: Sequence[Mapping[str, Any]]) -> UInt8[np.ndarray, "h w 3"]:
    """Draw every mask in its own colour, small masks over large ones."""
    painted = image.astype(np.float32)
    for number, record in enumerate(sorted(records, key=lambda r: -r["area"])):
        inside = masks.decode(record["segmentation"])
        hue = colorsys.hsv_to_rgb(number * _TURN % 1, 0.75, 0.95)
        painted[inside] = (1 - _OPACITY) * image[inside] + _OPACITY * 255 * np.array(hue, np.float32)
    return painted.astype(np.uint8)


def _small(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h2 w2 3"]:
    height = max(1, round(image.shape[0] * _WIDTH / image.shape[1]))
    return np.asarray(Image.fromarray(image).resize((_WIDTH, height), Image.Resampling.LANCZOS))
