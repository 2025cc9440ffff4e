"""SA-1B: tars with damaged headers, and json of samples."""

import io
import json
import tarfile
from pathlib import Path

from numpy.random import Generator

from pipeline.data.sa1b import annotations_of, members
from pipeline.ops import masks
from tests.fuzz.mutation import Case, as_json, damage, mutate, pick, replaced, written

_RECORD = {
    "image": {"image_id": 1, "height": 60, "width": 80},
    "annotations": [
        {"id": 5, "segmentation": {"size": [60, 80], "counts": [1000, 500, 3300]}, "bbox": [1, 2, 3, 4], "area": 5,
         "predicted_iou": 0.9, "stability_score": 0.9, "crop_box": [0, 0, 80, 60], "point_coords": [[1, 2]]}
    ],
}  # fmt: skip
_INVALID = (
    (("annotations", 0, "predicted_iou"), "0.9"),
    (("annotations", 0, "predicted_iou"), float("inf")),
    (("annotations", 0, "point_coords"), [[float("nan"), 2]]),
    (("image", "height"), 2**31),
    (("image", "width"), -1),
)
_FIELDS = ((0, 100), (124, 12), (156, 1), (257, 8), (345, 155), (386, 100))
_LINKS = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.GNUTYPE_SPARSE)


def records(rng: Generator) -> Case:
    """The json of a sample."""
    invalid = rng.random() < 0.2
    raw = json.dumps(replaced(_RECORD, *pick(rng, _INVALID))).encode()
    if not invalid:
        raw = as_json(rng, mutate(rng, _RECORD))
    return Case(lambda _: _read_record(raw), invalid)


def tars(rng: Generator) -> Case:
    """A tar whose headers have wrong fields and right checksums."""
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w", format=pick(rng, (0, 1, 2))) as tar:
        for name in ("a.jpg", "a.json", "d" * 120 + "/b.jpg", "d" * 120 + "/b.json"):
            info = tarfile.TarInfo(name)
            info.size = 30
            tar.addfile(info, io.BytesIO(b"x" * 30))
        if rng.random() < 0.3:
            info = tarfile.TarInfo("link")
            info.type, info.linkname = pick(rng, _LINKS), "/etc/hostname"
            tar.addfile(info)
    data = bytearray(stream.getvalue())
    for _ in range(pick(rng, (1, 2, 4))):
        _break_header(rng, data)
    raw = damage(rng, bytes(data)) if rng.random() < 0.2 else bytes(data)
    return Case(lambda folder: _read_tar(written(folder, "a.tar", raw).parent))


def _read_record(raw: bytes) -> None:
    record = annotations_of(raw, "record")
    for annotation in record.annotations:
        masks.from_segmentation(annotation.segmentation, (record.image.height, record.image.width))
        json.dumps(annotation.model_dump(exclude={"segmentation"}), allow_nan=False)


def _read_tar(folder: Path) -> None:
    for member in members(folder):
        member.read()


def _break_header(rng: Generator, data: bytearray) -> None:
    block = int(rng.integers(len(data) // 512)) * 512
    offset, length = pick(rng, _FIELDS)
    fill = (b"\xff", b"\x80" + b"\xff" * 200, b"7", b"L", b"x", b"S", b"\0", rng.bytes(length))
    data[block + offset : block + offset + length] = (pick(rng, fill) * length)[:length]
    header = data[block : block + 512]
    if rng.random() < 0.9:
        data[block + 148 : block + 156] = b"%06o\0 " % (sum(header[:148]) + 256 + sum(header[156:]))
