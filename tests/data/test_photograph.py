import io

import numpy as np
import pytest
from PIL import ExifTags, Image

from pipeline.core.errors import InputError
from pipeline.data.photograph import read_jpeg


def saved(image, form, **options):
    stream = io.BytesIO()
    image.save(stream, form, **options)
    return stream.getvalue()


def pixels(jpeg):
    with Image.open(io.BytesIO(jpeg)) as image:
        assert image.mode == "RGB"
        return np.asarray(image).astype(int)


def picture(height=16, width=32):
    """Left half red, right half blue: turning it shows."""
    array = np.zeros((height, width, 3), dtype=np.uint8)
    array[:, : width // 2, 0] = array[:, width // 2 :, 2] = 250
    return Image.fromarray(array)


def test_an_rgb_jpeg_keeps_its_bytes():
    raw = saved(picture(), "JPEG", quality=33)
    assert read_jpeg(raw, "x", 90) == (raw, (16, 32))


@pytest.mark.parametrize(
    ("image", "form", "expected"),
    [
        (Image.new("L", (16, 16), 77), "JPEG", (77, 77, 77)),
        (Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", (255, 0, 0)),
        (Image.new("RGB", (16, 16), (204, 0, 51)).convert("P"), "PNG", (204, 0, 51)),
        (Image.new("RGBA", (16, 16), (10, 20, 30, 0)), "PNG", (255, 255, 255)),
        (Image.new("RGBA", (16, 16), (10, 20, 30, 255)), "PNG", (10, 20, 30)),
        (Image.fromarray(np.full((16, 16), 128 * 257, dtype=np.uint16)), "PNG", (128, 128, 128)),
        (Image.new("1", (16, 16), 1), "PNG", (255, 255, 255)),
    ],
    ids=["grey", "cmyk", "palette", "transparent", "opaque", "16 bit", "1 bit"],
)
def test_every_kind_of_image_becomes_rgb_with_its_own_colour(image, form, expected):
    jpeg, size = read_jpeg(saved(image, form), "x", 95)
    assert size == (image.height, image.width)
    assert np.abs(pixels(jpeg) - expected).max() <= 8


def turned():
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6  # shown turned by 90 degrees clockwise
    return saved(picture(), "JPEG", exif=exif, quality=95)


@pytest.mark.parametrize(
    ("stated", "size", "as_stored"),
    [((16, 32), (16, 32), True), ((32, 16), (32, 16), False), (None, (32, 16), False)],
    ids=["annotated as stored", "annotated as shown", "without annotations"],
)
def test_the_annotations_size_decides_whether_exif_turns_an_image(stated, size, as_stored):
    jpeg, found = read_jpeg(turned(), "x", 95, stated)
    array = pixels(jpeg)
    assert found == size == array.shape[:2]
    lower_left = array[-4, 4]
    assert lower_left[0 if as_stored else 2] > 200
    assert lower_left[2 if as_stored else 0] < 50
    with Image.open(io.BytesIO(jpeg)) as image:
        assert not image.getexif()


def test_a_size_other_than_the_annotations_is_refused():
    with pytest.raises(InputError, match=r"photo\.jpg is 16 x 32 pixels .* say 17 x 32"):
        read_jpeg(saved(picture(), "JPEG"), "photo.jpg", 90, (17, 32))


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_image_is_named(form, share):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8))
    raw = saved(noise, form)
    with pytest.raises(InputError, match=r"photo is .*Restore the file"):
        read_jpeg(raw[: int(len(raw) * share)], "photo", 90)


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    with pytest.raises(InputError, match="nowhere cannot be read"):
        read_jpeg(tmp_path / "nowhere", "nowhere", 90)
    with pytest.raises(InputError, match="folder cannot be read"):
        read_jpeg(tmp_path, "folder", 90)


def test_text_is_no_image():
    with pytest.raises(InputError, match="not a readable image"):
        read_jpeg(b"hello", "note", 90)


def test_floating_point_pixels_are_refused():
    with pytest.raises(InputError, match="floating-point"):
        read_jpeg(saved(Image.new("F", (8, 8), 0.5), "TIFF"), "depth", 90)
