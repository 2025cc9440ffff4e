"""Image files of any kind as RGB JPEG bytes.

An upright RGB JPEG keeps its bytes. Everything else is re-encoded: greyscale is repeated over three channels, CMYK and
palettes are converted, transparency is composited on white, 16-bit greyscale is scaled to 8 bits, and of an animation
the first frame is used.

Orientation: COCO's coordinates refer to the stored pixels, and pycocotools never rotates an image, but some annotation
programs show (and measure) the rotated one. The annotation's height and width decide: if they match the stored pixels,
the EXIF tag is dropped; if they match only the rotated image, it is rotated. Without annotations the tag is applied. A
JPEG with an orientation tag is always re-encoded without it, so that no later reader rotates it again.
"""

import io
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError

from pipeline.core.errors import InputError
from pipeline.ops.geometry import Size

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff", ".gif"})

_DAMAGED = (
    UnidentifiedImageError,
    Image.DecompressionBombError,
    OSError,
    SyntaxError,
    EOFError,
    ValueError,
    struct.error,
    zlib.error,
)
"""Exceptions that Pillow's readers raise on damaged files."""


def read_jpeg(source: Path | bytes, name: str, quality: int, stated: Size | None = None) -> tuple[bytes, Size]:
    """Read an image file completely and convert it to RGB JPEG.

    Args:
        source: The file, or its bytes.
        name: Name used in errors.
        quality: JPEG quality 1 to 100, if it must be re-encoded.
        stated: Height and width according to the annotations; None without annotations.

    Returns:
        The JPEG's bytes, and its height and width.

    Raises:
        InputError: The file is missing, truncated, not an image, or not of the stated size.
    """
    try:
        raw = source if isinstance(source, bytes) else source.read_bytes()
    except OSError as error:
        raise InputError(f"{name} cannot be read ({error.strerror}). Restore it or drop it from the data.") from None
    try:
        with Image.open(io.BytesIO(raw)) as probe:
            probe.verify()
        with Image.open(io.BytesIO(raw)) as image:
            image.load()
            return _as_jpeg(image, raw, name, quality, stated)
    except InputError:
        raise
    except _DAMAGED as error:
        reason = "not a readable image" if isinstance(error, UnidentifiedImageError) else f"damaged: {error}"
        raise InputError(f"{name} is {reason}. Restore the file or drop it from the data.") from None


def _as_jpeg(image: Image.Image, raw: bytes, name: str, quality: int, stated: Size | None) -> tuple[bytes, Size]:
    turned = int(image.getexif().get(ExifTags.Base.Orientation, 1)) not in (0, 1)
    untouched = image.format == "JPEG" and image.mode == "RGB" and not turned
    if turned and (stated is None or (stated != _size(image) and stated == _size(ImageOps.exif_transpose(image)))):
        image = ImageOps.exif_transpose(image)
    size = _size(image)
    if stated is not None and size != stated:
        raise InputError(
            f"{name} is {size[0]} x {size[1]} pixels (height x width), its annotations say {stated[0]} x {stated[1]}: "
            "annotations and image do not belong together; correct the json or restore the image."
        )
    return (raw if untouched else encode_jpeg(_to_rgb(image, name), quality)), size


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
