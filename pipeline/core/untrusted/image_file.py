"""Images of listed formats and bounded size, opened by Pillow."""

import io
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from pipeline.core.errors import InputError
from pipeline.core.untrusted.json_file import LONGEST_SIDE
from pipeline.core.untrusted.regular_file import read_bytes

FORMATS = ("JPEG", "PNG", "BMP", "WEBP", "TIFF", "GIF")
"""Formats that Pillow may try. Others start programs (EPS: Ghostscript) or are of no use here."""
LARGEST = 1 << 30
"""Bytes of a file."""
MOST_PIXELS = 178_956_970
"""Height times width; Pillow's own limit against decompression bombs."""

_DAMAGED = (
    Image.DecompressionBombError,
    OSError,
    SyntaxError,
    EOFError,
    ValueError,
    LookupError,
    TypeError,
    ArithmeticError,
    AttributeError,
    NotImplementedError,
    RuntimeError,
    struct.error,
    zlib.error,
)
"""Exceptions that Pillow's readers raise on damaged files."""
_DROP = "Restore the file or drop it from the data."


@contextmanager
def opened(raw: bytes, name: str, *, formats: tuple[str, ...] = FORMATS, remedy: str = _DROP) -> Iterator[Image.Image]:
    """Open an image, check it completely, and decode it.

    Args:
        raw: The file's bytes.
        name: Name used in errors.
        formats: Those of `FORMATS` that are accepted.
        remedy: Sentence that ends an error.

    Raises:
        InputError: It is not such an image, is damaged, or exceeds a bound.
    """
    try:
        # Pillow warns of half its limit, and of damaged metadata that does not matter.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(raw), formats=formats) as probe:
                _check_size(probe.size)
                probe.verify()
            with Image.open(io.BytesIO(raw), formats=formats) as image:
                _check_size(image.size)
                image.load()
                yield image
    except InputError as error:
        raise InputError(f"{name} {error}. {remedy}" if isinstance(error, _SizeError) else str(error)) from None
    except UnidentifiedImageError:
        raise InputError(f"{name} is not a readable image. {remedy}") from None
    except _DAMAGED as error:
        raise InputError(f"{name} is damaged: {str(error).rstrip('.')}. {remedy}") from None


def read(path: Path, name: str | None = None, *, remedy: str = _DROP) -> bytes:
    """Bytes of an image file, not yet decoded.

    Raises:
        InputError: It is missing, not a regular file, too large, or cannot be read.
    """
    return read_bytes(path, LARGEST, name=name, remedy=remedy)


def leading_out(folder: Path, names: Iterable[str]) -> list[str]:
    """The names below ``folder`` that are links to files outside of it."""
    root = folder.resolve()
    return [name for name in names if not (folder / name).resolve().is_relative_to(root)]


class _SizeError(InputError):
    """A height or width is out of bounds."""


def _check_size(size: tuple[int, int]) -> None:
    width, height = size
    if not (1 <= width <= LONGEST_SIDE and 1 <= height <= LONGEST_SIDE and width * height <= MOST_PIXELS):
        bounds = f"at most {LONGEST_SIDE} a side and {MOST_PIXELS} in all"
        raise _SizeError(f"is {height} x {width} pixels (height x width), not {bounds}")
