"""Pictures of single instances: the prompt with the ground truth, and the masks of the teacher and each student."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Bool, UInt8
from PIL import Image

from pipeline.compare.evaluations import Evaluation
from pipeline.core.untrusted import image_file
from pipeline.data.coco import Instance, Photograph
from pipeline.ops import masks

SIDE = 224
_QUALITY = 80
TEACHER, STUDENT = (150, 165, 185), (64, 132, 255)
"""Colours of their masks."""
_TRUTH, _PROMPT = (60, 220, 140), (255, 196, 0)
PROMPT_NAMES = {"box": "box", "click": "one click"}
_OPACITY = 0.45
_MIN_AREA_SHARE = 0.005
"""Smallest share of the photograph's area that a shown instance covers, if the photograph has such instances."""


@dataclass(frozen=True)
class Tile:
    """One picture of a row."""

    caption: str
    iou: float | None
    image: str
    """``data:`` URI."""
    model: str = ""
    """Model and precision whose mask it shows."""

    @property
    def description(self) -> str:
        """Text for readers who do not see the picture."""
        score = "" if self.iou is None else f"IoU {self.iou:.3f}"
        return ", ".join(filter(None, (self.model, self.caption, score)))


@dataclass(frozen=True)
class Case:
    """One instance with one prompt, ``box`` or ``click``."""

    prompt: str
    caption: str
    tiles: list[Tile]


@dataclass(frozen=True)
class _Sample:
    photograph: Photograph
    instance: Instance


def gallery(prepare: Path, shown: Sequence[Photograph], evaluations: Sequence[Evaluation], pictures: int) -> list[Case]:
    """Draw one instance of each of the first pictures, prompted alternately by box and by click.

    The instance is the one with the photograph's median teacher IoU, so that it is typical.

    Raises:
        InputError: A photograph is missing or damaged.
    """
    cases = []
    for number, photograph in enumerate(p for p in shown[:pictures] if _drawable(p, evaluations)):
        sample = _typical(photograph, _drawable(photograph, evaluations), evaluations[0])
        cases.append(_case(prepare, sample, evaluations, "box" if number % 2 == 0 else "click", ""))
    return cases


def extremes(
    prepare: Path, shown: Sequence[Photograph], evaluations: Sequence[Evaluation], count: int
) -> tuple[dict[str, list[Case]], dict[str, list[Case]]]:
    """Draw the masks with the largest loss and the largest gain in IoU of each student against the teacher.

    Boxes and clicks are ranked together. A student without losses, or without gains, has no entry.

    Returns:
        Losses and gains, by the student's name.

    Raises:
        InputError: A photograph is missing or damaged.
    """
    teacher, *students = evaluations
    worst, best = dict[str, list[Case]](), dict[str, list[Case]]()
    for student in students:
        ranked = sorted(
            (
                student.scores[i.id][f"{prompt}_iou"] - teacher.scores[i.id][f"{prompt}_iou"],
                i.id,
                prompt,
                _Sample(p, i),
            )
            for p in shown
            for i in _drawable(p, [teacher, student])
            for prompt in ("box", "click")
        )  # ids are unique, so samples, which have no order, are never compared
        behind = [entry for entry in ranked if entry[0] < 0][:count]
        ahead = [entry for entry in reversed(ranked) if entry[0] > 0][:count]
        for entries, into in ((behind, worst), (ahead, best)):
            if entries:
                into[student.name] = [
                    _case(prepare, sample, [teacher, student], prompt, f"{gap:+.2f} to the teacher")
                    for gap, _, prompt, sample in entries
                ]
    return worst, best


def _drawable(photograph: Photograph, evaluations: Sequence[Evaluation]) -> list[Instance]:
    """Instances whose masks every evaluation has stored."""
    return [i for i in photograph.instances if all(i.id in e.predictions for e in evaluations)]


def _typical(photograph: Photograph, instances: Sequence[Instance], teacher: Evaluation) -> _Sample:
    min_area_px = _MIN_AREA_SHARE * photograph.height * photograph.width
    eligible = [i for i in instances if masks.area(i.rle) >= min_area_px] or list(instances)
    ordered = sorted(eligible, key=lambda i: (teacher.scores[i.id]["box_iou"], i.id))
    return _Sample(photograph, ordered[len(ordered) // 2])


def _case(prepare: Path, sample: _Sample, evaluations: Sequence[Evaluation], prompt: str, caption: str) -> Case:
    image = read_image(prepare / "validation" / "images" / sample.photograph.file_name)
    truth = masks.decode(sample.instance.rle)
    window = _window(masks.box(truth), truth.shape)
    tiles = [Tile(PROMPT_NAMES[prompt], None, as_uri(_draw_prompt(_scaled(image, window), truth, window, prompt)))]
    for evaluation in evaluations:
        mask = masks.decode(evaluation.predictions[sample.instance.id][prompt])
        colour = TEACHER if evaluation.role == "teacher" else STUDENT
        iou = evaluation.scores[sample.instance.id][f"{prompt}_iou"]
        tiles.append(Tile("", iou, as_uri(_overlay(image, mask, window, colour)), evaluation.name))
    return Case(prompt, caption, tiles)


def read_image(path: Path) -> UInt8[np.ndarray, "h w 3"]:
    """Read a photograph of the dataset as RGB.

    Raises:
        InputError: The file is missing or damaged.
    """
    remedy = "Run `dvc repro --force --single-item prepare`."
    with image_file.opened(image_file.read(path, remedy=remedy), str(path), remedy=remedy) as image:
        return np.asarray(image.convert("RGB"))


def _window(box: tuple[float, float, float, float], size: tuple[int, ...]) -> tuple[int, int, int]:
    """Left, top and side of a square around the instance with some context, in pixels."""
    height, width = size
    x0, y0, x1, y1 = box
    side = round(min(min(size), max(1.5 * max(x1 - x0, y1 - y0), 0.45 * min(size))))
    side = max(side, round(min(max(size), 1.15 * max(x1 - x0, y1 - y0))))  # may exceed the shorter side
    left = round(min(max(0, (x0 + x1 - side) / 2), max(0, width - side)))
    top = round(min(max(0, (y0 + y1 - side) / 2), max(0, height - side)))
    return left, top, side


def _scaled(image: UInt8[np.ndarray, "h w 3"], window: tuple[int, int, int]) -> UInt8[np.ndarray, "s s 3"]:
    """Crop the window of an image and scale it to a tile; pixels outside the image are grey."""
    left, top, side = window
    cut = image[top : top + side, left : left + side]
    square = np.full((side, side, 3), 128, np.uint8)
    square[: cut.shape[0], : cut.shape[1]] = cut
    resampling = Image.Resampling.LANCZOS if side >= SIDE else Image.Resampling.BICUBIC
    return np.array(Image.fromarray(square).resize((SIDE, SIDE), resampling))


def _overlay(
    image: UInt8[np.ndarray, "h w 3"],
    mask: Bool[np.ndarray, "h w"],
    window: tuple[int, int, int],
    colour: tuple[int, int, int],
) -> UInt8[np.ndarray, "s s 3"]:
    """The window of an image with a mask."""
    return shade(_scaled(image, window), _scaled_mask(mask, window), colour)


def _scaled_mask(mask: Bool[np.ndarray, "h w"], window: tuple[int, int, int]) -> Bool[np.ndarray, "s s"]:
    inside = _scaled(np.repeat(mask[..., None], 3, axis=2).astype(np.uint8) * 255, window)[..., 0] > 127
    return inside & ~_beyond(mask.shape, window)


def shade(
    tile: UInt8[np.ndarray, "h w 3"], inside: Bool[np.ndarray, "h w"], colour: tuple[int, int, int]
) -> UInt8[np.ndarray, "h w 3"]:
    """Draw a mask with its outline over a picture and darken the rest."""
    drawn = tile.astype(np.float32)
    drawn[~inside] *= 0.6
    drawn[inside] = (1 - _OPACITY) * drawn[inside] + _OPACITY * np.array(colour, np.float32)
    return _outline(drawn.astype(np.uint8), inside, (255, 255, 255), 1)


def _outline(
    tile: UInt8[np.ndarray, "h w 3"], inside: Bool[np.ndarray, "h w"], colour: tuple[int, int, int], width: int
) -> UInt8[np.ndarray, "h w 3"]:
    contours, _ = cv2.findContours(inside.astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(tile, contours, -1, colour, width, cv2.LINE_AA)
    return tile


def _beyond(size: tuple[int, ...], window: tuple[int, int, int]) -> Bool[np.ndarray, "s s"]:
    """Pixels of a tile that lie outside the image."""
    left, top, side = window
    centres = (np.arange(SIDE) + 0.5) * side / SIDE
    return (centres + top >= size[0])[:, None] | (centres + left >= size[1])[None, :]


def _draw_prompt(
    tile: UInt8[np.ndarray, "s s 3"], truth: Bool[np.ndarray, "h w"], window: tuple[int, int, int], prompt: str
) -> UInt8[np.ndarray, "s s 3"]:
    """Outline the ground truth and draw the prompt."""
    left, top, side = window
    scale = SIDE / side
    _outline(tile, _scaled_mask(truth, window), _TRUTH, 2)
    if prompt == "box":
        x0, y0, x1, y1 = masks.box(truth)
        numbers = [(x0 - left) * scale, (y0 - top) * scale, (x1 - left) * scale - 1, (y1 - top) * scale - 1]
    else:
        x, y = masks.center(truth)
        numbers = [(x + 0.5 - left) * scale, (y + 0.5 - top) * scale]
    return mark_prompt(tile, prompt, numbers)


def mark_prompt(tile: UInt8[np.ndarray, "h w 3"], prompt: str, numbers: Sequence[float]) -> UInt8[np.ndarray, "h w 3"]:
    """Draw a prompt into a picture.

    Args:
        tile: The picture, changed in place.
        prompt: ``box`` or ``click``.
        numbers: The box xyxy or the click (x, y), in the picture's pixels.
    """
    points = [round(value) for value in numbers]
    if prompt == "box":
        for colour, width in (((0, 0, 0), 4), (_PROMPT, 2)):
            cv2.rectangle(tile, (points[0], points[1]), (points[2], points[3]), colour, width, cv2.LINE_AA)
    else:
        for colour, radius in (((0, 0, 0), 8), ((255, 255, 255), 7), (_PROMPT, 5)):
            cv2.circle(tile, (points[0], points[1]), radius, colour, -1, cv2.LINE_AA)
    return tile


def as_uri(tile: UInt8[np.ndarray, "h w 3"]) -> str:
    """Encode a picture as a ``data:`` URI with a JPEG."""
    stream = io.BytesIO()
    Image.fromarray(tile).save(stream, "JPEG", quality=_QUALITY, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode("ascii")
