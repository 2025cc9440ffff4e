"""Size of an image from its header, before anything is decoded."""

import io
import warnings

from PIL import Image

from pipeline.core.errors import InputError
from pipeline.core.untrusted.image_file import FORMATS


def size(raw: bytes, name: str) -> tuple[int, int]:
    """Stated height and width of an image in one of `image_file.FORMATS`; not checked against any bound.

    Args:
        raw: The file's bytes.
        name: Name used in errors.

    Raises:
        InputError: It is not such an image.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with Image.open(io.BytesIO(raw), formats=FORMATS) as image:
                return image.height, image.width
    except Image.DecompressionBombError:
        raise InputError(f"{name} has too many pixels.") from None
    except Exception:  # noqa: BLE001 - Pillow's readers share no base class for damaged files
        raise InputError(f"{name} is not a readable image: give one of {', '.join(FORMATS)}.") from None
