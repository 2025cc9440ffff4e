"""Image files of any kind as RGB JPEG bytes or RGB pixels.

An upright RGB JPEG keeps its bytes. Everything else is re-encoded: greyscale is repeated over three channels, CMYK and
palettes are converted, transparency is composited on white, 16-bit greyscale is scaled to 8 bits, and of an animation
the first frame is used.

Orientation: COCO's coordinates refer to the stored pixels, and pycocotools never rotates an image, but some annotation
programs show (and measure) the rotated one. The annotation's height and width decide: if they match the stored pixels,
the EXIF tag is dropped; if they match only the rotated image, it is rotated. Without annotations the tag is applied. A
JPEG with an orientation tag is always re-encoded without it, so that no later reader rotates it again. A size does not
show a half turn, a mirroring or a turn of a square image; annotations may therefore state whether the tag was applied
(``exif_transposed``), as those of `pipeline.predict` do.
"""

import io
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import UInt8
from PIL import ExifTags, Image, ImageOps

from pipeline.core.errors import InputError
from pipeline.core.untrusted import image_file
from pipeline.ops.geometry import Size

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"})

ResultT = TypeVar("ResultT")


class Pixels(NamedTuple):
    """Result of `read_pixels`."""

    rgb: UInt8[np.ndarray, "h w 3"]
    transposed: bool
    """Whether an EXIF orientation tag was applied."""


def read_jpeg(
    source: Path | bytes, name: str, quality: int, stated: Size | None = None, transposed: bool | None = None
) -> tuple[bytes, Size]:
    """Read an image file completely and convert it to RGB JPEG.

    Args:
        source: The file, or its bytes.
        name: Name used in errors.
        quality: JPEG quality 1 to 100, if it must be re-encoded.
        stated: Height and width according to the annotations; None without annotations.
        transposed: Whether the annotations refer to the image with its EXIF orientation applied; None if unknown.

    Returns:
        The JPEG's bytes, and its height and width.

    Raises:
        InputError: The file is missing, truncated, not an image, or not of the stated size.
    """
    raw = source if isinstance(source, bytes) else read_file(source, name)

    def encode(image: Image.Image) -> tuple[bytes, Size]:
        untouched = image.format == "JPEG" and image.mode == "RGB" and not _has_orientation(image)
        image, _ = _oriented(image, name, stated, transposed)
        return (raw if untouched else encode_jpeg(_to_rgb(image, name), quality)), _size(image)

    return _decoded(raw, name, encode)


def read_pixels(raw: bytes, name: str, stated: Size | None = None, transposed: bool | None = None) -> Pixels:
    """Decode an image file to RGB pixels, in the frame that `read_jpeg` uses.

    Args:
        raw: The file's bytes.
        name: Name used in errors.
        stated: Height and width according to the annotations; None without annotations.
        transposed: Whether the annotations refer to the image with its EXIF orientation applied; None if unknown.

    Raises:
        InputError: The file is truncated, not an image, or not of the stated size.
    """

    def decode(image: Image.Image) -> Pixels:
        image, turned = _oriented(image, name, stated, transposed)
        return Pixels(np.array(_to_rgb(image, name)), turned)

    return _decoded(raw, name, decode)


def read_file(path: Path, name: str) -> bytes:
    """Bytes of a file.

    Raises:
        InputError: It is missing or cannot be read.
    """
    return image_file.read(path, name)


def _decoded(raw: bytes, name: str, use: Callable[[Image.Image], ResultT]) -> ResultT:
    """Open and check an image, and return ``use(image)``."""
    with image_file.opened(raw, name) as image:
        return use(image)


def _oriented(image: Image.Image, name: str, stated: Size | None, transposed: bool | None) -> tuple[Image.Image, bool]:
    """The image in the frame of its annotations, and whether its EXIF orientation was applied."""
    if transposed is None:
        transposed = stated is None or (stated != _size(image) and stated == _size(ImageOps.exif_transpose(image)))
    turned = transposed and _has_orientation(image)
    if turned:
        image = ImageOps.exif_transpose(image)
    size = _size(image)
    if stated is not None and size != stated:
        raise InputError(
            f"{name} is {size[0]} x {size[1]} pixels (height x width), its annotations say {stated[0]} x {stated[1]}: "
            "annotations and image do not belong together; correct the json or restore the image."
        )
    return image, turned


def _has_orientation(image: Image.Image) -> bool:
    return int(image.getexif().get(ExifTags.Base.Orientation, 1)) not in (0, 1)


def _size(image: Image.Image) -> Size:
    return image.height, image.width


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    if image.mode.startswith("I"):
        values = np.asarray(image).astype(np.float64) / 257
        return Image.fromarray(values.clip(0, 255).round().astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise InputError(f"{name} holds floating-point values, which have no agreed range: save it with 8 bits.")
    if image.has_transparency_data:
        above = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", above.size, "white"), above).convert("RGB")
    return image.convert("RGB")


def encode_jpeg(image: Image.Image, quality: int) -> bytes:
    """Encode an RGB image as JPEG without metadata; equal pixels give equal bytes."""
    clean = Image.frombytes("RGB", image.size, image.tobytes())
    stream = io.BytesIO()
    clean.save(stream, "JPEG", quality=quality)
    return stream.getvalue()
