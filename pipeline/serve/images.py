"""Images that clients send, and their ids."""

import base64
import binascii
import hashlib

import numpy as np
from jaxtyping import Float, UInt8
from torch import Tensor

from pipeline.core.errors import InputError
from pipeline.core.untrusted import image_header
from pipeline.data.photograph import read_pixels
from pipeline.ops.geometry import Size, to_input
from pipeline.serve.problems import Problem, invalid, too_large

_NAME = "the image"


def id_of(raw: bytes) -> str:
    """Id of an image file: the SHA-256 of its bytes."""
    return hashlib.sha256(raw).hexdigest()


def from_base64(text: str) -> bytes:
    """Bytes of a base64 text.

    Raises:
        Problem: It is not base64.
    """
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise invalid("image is not base64.") from None


def pixels(raw: bytes, most_pixels: int) -> UInt8[np.ndarray, "h w 3"]:
    """Upright RGB pixels of an image file.

    Raises:
        Problem: It is not an image, is damaged, or has more than ``most_pixels`` pixels.
    """
    try:
        height, width = image_header.size(raw, _NAME)
        if height * width > most_pixels:
            raise too_large(f"the image has {height} x {width} pixels, more than {most_pixels} in all: scale it down.")
        return read_pixels(raw, _NAME).rgb
    except InputError as error:
        detail = str(error).removesuffix("Restore the file or drop it from the data.")
        raise invalid(detail) from None
    except MemoryError:
        raise Problem(413, "the image does not fit into the server's memory: scale it down.") from None


def model_input(raw: bytes, most_pixels: int, side: int) -> tuple[Size, Float[Tensor, "3 side side"]]:
    """Size of an image and the encoder's input.

    Raises:
        Problem: As `pixels`.
    """
    rgb = pixels(raw, most_pixels)
    return (rgb.shape[0], rgb.shape[1]), to_input(rgb, side)
