import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.core.errors import InputError
from pipeline.core.untrusted.image_file import FORMATS, leading_out, opened

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n%%EOF\n"


def encoded(format):
    stream = io.BytesIO()
    Image.fromarray(np.full((6, 9, 3), 200, np.uint8)).save(stream, format)
    return stream.getvalue()


def png(width, height):
    """A PNG that states a size and holds one row."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


HOSTILE = {
    "eps": (EPS, "not a readable image"),
    "pdf": (b"%PDF-1.4\n", "not a readable image"),
    "ppm": (b"P6 1 1 255 abc", "not a readable image"),
    "svg": (b"<svg/>", "not a readable image"),
    "empty": (b"", "not a readable image"),
    "zeros": (bytes(100), "not a readable image"),
    "2^31 - 1 a side": (png((1 << 31) - 1, (1 << 31) - 1), "exceeds limit"),
    "above the longest side": (png(16_385, 1), "1 x 16385 pixels"),
    "above the most pixels": (png(16_384, 16_384), "exceeds limit"),
    "no width": (png(0, 5), "image"),
    "missing rows": (png(9, 9), "damaged"),
    **{f"{format} that is cut": (encoded(format)[:-20], "") for format in ("JPEG", "PNG", "WEBP")},
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_hostile_image_is_refused_in_one_line(case, recwarn):
    raw, says = HOSTILE[case]
    with (
        pytest.raises(InputError, match=rf"image\.jpg is .*{says}.*Take another") as refused,
        opened(raw, "image.jpg", remedy="Take another."),
    ):
        pass
    assert "\n" not in str(refused.value)
    assert not recwarn


def test_eps_does_not_reach_a_program(monkeypatch):
    from PIL import EpsImagePlugin

    def started(*given, **named):
        raise AssertionError("Ghostscript was started")

    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", started)
    with pytest.raises(InputError), opened(EPS, "image.jpg"):
        pass


@pytest.mark.parametrize("format", FORMATS)
def test_each_format_is_read(format):
    with opened(encoded(format), "image") as image:
        assert image.size == (9, 6)


def test_links_that_lead_out_of_a_folder_are_listed(tmp_path):
    folder = tmp_path / "images"
    folder.mkdir()
    (tmp_path / "outside.jpg").touch()
    (folder / "own.jpg").touch()
    (folder / "inside.jpg").symlink_to("own.jpg")
    (folder / "out.jpg").symlink_to(Path("../outside.jpg"))
    assert leading_out(folder, ["own.jpg", "inside.jpg", "out.jpg"]) == ["out.jpg"]
    (tmp_path / "linked").symlink_to(folder)
    assert leading_out(tmp_path / "linked", ["own.jpg"]) == []
