"""Training images from photographs: random affine crops, cut-outs of other photographs pasted in, colour and blur.

Source: SSD-style scale jitter and "Simple Copy-Paste" (Ghiasi et al. 2021). All randomness comes from the generators.
"""

from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
from jaxtyping import Float, UInt8

from pipeline.data.scenes import render
from pipeline.evaluate.images import read_rgb
from pipeline.ops import masks
from pipeline.prepare.files import FileItem, plan
from pipeline.prepare.sources import Coco
from pipeline.train_teacher.frame import Frame, Matrix, Picture, Window, affine, cutout

SCENE_SIDE = 256
"""Side of a rendered scene, the demo's, before it is enlarged."""
SCALES = (0.45, 2.2)
"""Zoom of a photograph relative to filling the frame, sampled log-uniformly."""
CUTOUT_SIDES = (0.03, 0.4)
"""Size of a pasted cut-out, the root of its area, as a share of the frame's side; sampled log-uniformly."""
MIN_CUTOUT_SIDE, BACKGROUND_SIDE = 60, 800
MOSAIC_CHANCE, CUTOUT_CHANCE, TEXTURE_CHANCE = 0.2, 0.5, 0.5


def split(data: Path, annotations: str, images: str) -> tuple[list[FileItem], list[FileItem]]:
    """Divide COCO-format photographs as preset ``coco`` does.

    Returns:
        Photographs to train on, and the 40 that the preset validates on.
    """
    source = Coco(kind="coco", annotations=annotations, images=images, calibration_images=16, validation_images=40)
    planned = plan(source, data)
    train = [*planned.splits["train"], *planned.splits["calibration"]]
    validation = planned.validation["validation"].items
    return [i for i in train if isinstance(i, FileItem)], [i for i in validation if isinstance(i, FileItem)]


def read(items: Sequence[FileItem]) -> list[Picture]:
    """Read the photographs that have masks into memory. Crowd regions and, in training, tiny masks are left out."""
    pictures = []
    for item in items:
        if item.size is None:
            continue
        image = read_rgb(item.path, item.size, "Restore the photograph.")
        least = 1 if item.keep_all else item.min_area_px
        rles = [instance.rle for instance in item.instances if not instance.iscrowd]
        decoded = [masks.decode(rle) for rle in rles if masks.area(rle) >= least]
        pictures.append(Picture(image, [cutout(mask) for mask in decoded]))
    return pictures


def read_cutouts(folder: Path) -> list[Picture]:
    """Read the PNG files below a folder whose alpha channel is the mask of one object; others are left out."""
    pictures = []
    for path in sorted(folder.rglob("*.png")):
        pixels = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
        if pixels is None or pixels.ndim != 3 or pixels.shape[2] != 4 or pixels.dtype != np.uint8:
            continue
        mask = pixels[..., 3] > 127
        if min(pixels.shape[:2]) < MIN_CUTOUT_SIDE or not 0.05 < mask.mean() < 0.97:
            continue
        # Bled outwards, because pixels beyond the mask's border are black and pasting blends over it.
        rgb = cv2.inpaint(
            np.ascontiguousarray(pixels[..., 2::-1]), (pixels[..., 3] < 250).astype(np.uint8), 3, cv2.INPAINT_TELEA
        )
        pictures.append(Picture(rgb, [cutout(mask)]))
    return pictures


def read_backgrounds(folder: Path) -> list[Picture]:
    """Read the JPEG files below a folder, shrunk to at most `BACKGROUND_SIDE` pixels, without instances."""
    pictures = []
    for path in sorted({*folder.rglob("*.jpg"), *folder.rglob("*.jpeg")}):
        image = cv2.imread(str(path))
        if image is None:
            continue
        zoom = min(1.0, BACKGROUND_SIDE / max(image.shape[:2]))
        image = cv2.resize(image, None, fx=zoom, fy=zoom, interpolation=cv2.INTER_AREA)
        pictures.append(Picture(np.ascontiguousarray(image[..., ::-1]), []))
    return pictures


def collage(rng: np.random.Generator, backgrounds: Sequence[Picture], pictures: Sequence[Picture], side: int) -> Frame:
    """Draw a background without the instances in it, and paste cut-outs over it."""
    background = backgrounds[int(rng.integers(len(backgrounds)))]
    frame = Frame(side, rng.uniform(60, 170, 3).tolist())
    window = (0, 0, side, side)
    plain = Picture(background.image, [])
    frame.place(plain, _crop(rng, plain, window), window)
    for _ in range(int(rng.integers(2, 9))):
        _paste_one(rng, frame, pictures)
    return frame


def photograph(
    rng: np.random.Generator,
    pictures: Sequence[Picture],
    index: int,
    side: int,
    cutouts: Sequence[Picture] = (),
) -> Frame:
    """Draw photograph ``index``, or a mosaic of four with it, and paste cut-outs of others."""
    frame = Frame(side, rng.uniform(60, 170, 3).tolist())
    if rng.random() < MOSAIC_CHANCE:
        x, y = (int(v) for v in rng.uniform(0.35, 0.65, 2) * side)
        windows = [(0, 0, x, y), (x, 0, side, y), (0, y, x, side), (x, y, side, side)]
        indices = [index, *rng.integers(len(pictures), size=3)]
        for window, number in zip(windows, indices, strict=True):
            frame.place(pictures[number], _crop(rng, pictures[number], window), window)
    else:
        window = (0, 0, side, side)
        frame.place(pictures[index], _crop(rng, pictures[index], window), window)
    if rng.random() < CUTOUT_CHANCE:
        for _ in range(int(rng.integers(1, 6))):
            _paste_one(rng, frame, cutouts if cutouts and rng.random() < 0.5 else pictures)
    return frame


def scene(rng: np.random.Generator, pictures: Sequence[Picture], side: int) -> Frame:
    """Draw a rendered scene, on which photographs may replace the background and some surfaces."""
    rendered = render(rng, SCENE_SIDE)
    image = rendered.image[..., rng.permutation(3)]
    if pictures and rng.random() < TEXTURE_CHANCE:
        image = _textured(rng, image, rendered.masks, pictures)
    frame = Frame(side, rng.uniform(60, 170, 3).tolist())
    matrix = _turned(rng, side / SCENE_SIDE, side)
    frame.place(Picture(image, [cutout(mask) for mask in rendered.masks]), matrix, (0, 0, side, side))
    if pictures and rng.random() < CUTOUT_CHANCE / 2:
        for _ in range(int(rng.integers(1, 4))):
            _paste_one(rng, frame, pictures)
    return frame


def around_an_instance(rng: np.random.Generator, frame: Frame, side: int) -> Frame:
    """Crop a square of ``side`` pixels that contains the centre of a random instance, one that fits if there is any."""
    x, y = rng.uniform(0, frame.side, 2)
    if frame.instances:
        fitting = [instance for instance in frame.instances if max(instance.mask.shape) < side] or frame.instances
        instance = fitting[int(rng.integers(len(fitting)))]
        x, y = instance.x + instance.mask.shape[1] / 2, instance.y + instance.mask.shape[0] / 2
    corner = np.clip(np.array([x, y]) - rng.uniform(0.1, 0.9, 2) * side, 0, frame.side - side)
    return frame.crop(int(corner[0]), int(corner[1]), side)


def developed(rng: np.random.Generator, image: Float[np.ndarray, "s s 3"]) -> UInt8[np.ndarray, "s s 3"]:
    """Vary colour, contrast, blur, noise and compression."""
    image = image * rng.uniform(0.75, 1.25) * rng.uniform(0.88, 1.12, 3).astype(np.float32)
    mean = float(image.mean())
    image = (image - mean) * rng.uniform(0.7, 1.3) + mean + rng.uniform(-20, 20)
    grey = image.mean(axis=2, keepdims=True)
    image = grey + (image - grey) * (0.0 if rng.random() < 0.06 else rng.uniform(0.5, 1.4))
    if rng.random() < 0.25:
        image = cv2.GaussianBlur(image, (0, 0), rng.uniform(0.4, 1.6))
    if rng.random() < 0.3:
        image = image + rng.standard_normal(image.shape, np.float32) * rng.uniform(1, 9)
    image = np.clip(np.round(image), 0, 255).astype(np.uint8)
    if rng.random() < 0.3:
        _, coded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(40, 95))])
        image = np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR))
    return np.ascontiguousarray(image)


def _crop(rng: np.random.Generator, picture: Picture, window: Window) -> Matrix:
    """A random zoom, aspect, small rotation and mirroring into a window; half of the crops as in evaluation."""
    height, width = picture.image.shape[:2]
    corner, extent = np.array(window[:2], float), np.array([window[2] - window[0], window[3] - window[1]], float)
    fit = float(extent.max()) / max(height, width)
    zoom = fit * float(np.exp(rng.uniform(*np.log(SCALES)))) if rng.random() < 0.75 else fit
    stretch = np.exp(rng.normal(0, 0.08))
    mirror = -1 if rng.random() < 0.5 else 1
    turn = rng.normal(0, 0.12) if rng.random() < 0.4 else 0.0
    shown = np.array([width, height]) * zoom
    slack = extent - shown  # negative if the picture is larger than the window
    share = rng.uniform(0, 1, 2)
    target = corner + slack * np.where(slack < 0, share, share**2)
    center = np.array([width, height]) / 2
    return affine(mirror * zoom * stretch, zoom / stretch, turn, center, target + shown / 2)


def _turned(rng: np.random.Generator, scale: float, side: int) -> Matrix:
    """Enlarge a scene to the frame, mirrored and transposed at random."""
    turn = float(rng.integers(4)) * np.pi / 2
    mirror = -1 if rng.random() < 0.5 else 1
    zoom = scale * (rng.uniform(0.6, 1.5) if rng.random() < 0.3 else 1.0)
    middle = np.full(2, side / 2)
    return affine(mirror * zoom, zoom, turn, np.full(2, SCENE_SIDE / 2), middle)


def _paste_one(rng: np.random.Generator, frame: Frame, pictures: Sequence[Picture]) -> None:
    """Paste a random instance of a random photograph at a random place and size."""
    picture = pictures[int(rng.integers(len(pictures)))]
    if not picture.instances:
        return
    instance = picture.instances[int(rng.integers(len(picture.instances)))]
    height, width = instance.mask.shape
    size = float(np.sqrt(np.count_nonzero(instance.mask)))
    if size < 20:
        return
    zoom = min(1.6, frame.side * float(np.exp(rng.uniform(*np.log(CUTOUT_SIDES)))) / size)
    center = np.array([instance.x + width / 2, instance.y + height / 2])
    mirror = -1 if rng.random() < 0.5 else 1
    turn = rng.normal(0, 0.25)
    matrix = affine(mirror * zoom, zoom, turn, center, rng.uniform(0.03, 0.97, 2) * frame.side)
    frame.paste(picture, instance, matrix, rng.uniform(0.5, 1.0))


def _textured(
    rng: np.random.Generator, image: np.ndarray, instances: Sequence[np.ndarray], pictures: Sequence[Picture]
) -> np.ndarray:
    """Replace a scene's background, and each surface with a chance of a third, by crops of photographs."""
    side = len(image)
    result = image.astype(np.float32)
    background = np.ones((side, side), bool)
    for mask in instances:
        background &= ~mask
    areas = [background] if rng.random() < 0.7 else []
    areas += [mask for mask in instances if rng.random() < 1 / 3]
    for area in areas:
        source = pictures[int(rng.integers(len(pictures)))].image
        extent = int(rng.integers(64, min(source.shape[:2]) + 1))
        y, x = (int(rng.integers(n - extent + 1)) for n in source.shape[:2])
        crop = source[y : y + extent, x : x + extent]
        how = cv2.INTER_AREA if extent > side else cv2.INTER_LINEAR
        crop = cv2.resize(crop, (side, side), interpolation=how).astype(np.float32)
        alpha = cv2.GaussianBlur(area.astype(np.float32), (0, 0), rng.uniform(0.3, 0.8))[..., None]
        result += alpha * (crop - result)
    return np.clip(result, 0, 255).astype(np.uint8)
