"""Images in all formats that are read."""

import io

from numpy.random import Generator
from PIL import Image

from pipeline.data.photograph import read_jpeg, read_pixels
from tests.fuzz.mutation import Case, damage, pick

_FORMATS = (
    ("JPEG", "RGB", {}), ("JPEG", "L", {}), ("JPEG", "CMYK", {}), ("PNG", "RGBA", {}), ("PNG", "P", {}),
    ("PNG", "I;16", {}), ("PNG", "1", {}), ("BMP", "RGB", {}), ("WEBP", "RGB", {}), ("TIFF", "RGB", {}),
    ("TIFF", "RGB", {"compression": "tiff_lzw"}), ("TIFF", "F", {}), ("GIF", "P", {}),
)  # fmt: skip
_INVALID = (("EPS", (31, 17)), ("PPM", (31, 17)), ("PNG", (16385, 1)), ("TIFF", (1, 16385)))


def images(rng: Generator) -> Case:
    """An image with damaged bytes, or of a format or size that is refused."""
    stream = io.BytesIO()
    invalid = rng.random() < 0.1
    if invalid:
        kind, size = pick(rng, _INVALID)
        Image.new("RGB", size).save(stream, kind)
        return Case(lambda _: read_pixels(stream.getvalue(), "image"), invalid=True)
    kind, mode, options = pick(rng, _FORMATS)
    exif = Image.Exif()
    exif[0x112] = pick(rng, (1, 3, 6, 8, 99))
    if kind == "JPEG" and rng.random() < 0.5:
        options = {"exif": exif}
    Image.new(mode, (31, 17)).save(stream, kind, **options)
    raw = damage(rng, stream.getvalue())
    if rng.random() < 0.5:
        return Case(lambda _: read_pixels(raw, "image"))
    size = pick(rng, (None, (17, 31), (31, 17)))
    return Case(lambda _: read_jpeg(raw, "image", 90, size))
