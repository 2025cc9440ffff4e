"""COCO's ``segmentation``: polygons and run-length encodings that pycocotools can take.

pycocotools is C: it writes out of bounds when a count overflows 32 bits or an encoding is malformed, so everything is
checked before it is called.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pipeline.core.errors import InputError
from pipeline.core.untrusted.json_file import LONGEST_SIDE, shown

FARTHEST = 10
"""Largest distance of a polygon from the origin, in image sides."""
MOST_POLYGONS = 4_000
"""Polygons of one mask. Merging takes time proportional to their number and the mask's runs."""
LONGEST_OUTLINE = 1 << 22
"""Total length of a mask's outline in pixels; pycocotools keeps five points of 8 bytes per pixel."""

LONGEST_COUNTS = 1 << 22
"""Runs of an uncompressed RLE, characters of a compressed one."""


@dataclass(frozen=True)
class Polygons:
    """Corners x, y, x, y ... of each polygon, in pixels."""

    corners: list[list[float]]


@dataclass(frozen=True)
class Runs:
    """Uncompressed RLE: lengths of runs, column-major, that sum to the pixels of the image."""

    counts: list[int]


@dataclass(frozen=True)
class Text:
    """Counts of a compressed RLE that describe all pixels of the image."""

    counts: str


def check(segmentation: object, size: tuple[int, int]) -> Polygons | Runs | Text:
    """Check a segmentation in any of COCO's three forms.

    Args:
        segmentation: Polygons ``[[x, y, x, y, ...], ...]``, uncompressed RLE (``counts`` a list) or compressed RLE.
        size: Height and width of the image.

    Raises:
        InputError: It is none of the three, does not fit ``size``, or exceeds a bound.
    """
    check_size(size)
    if isinstance(segmentation, Mapping):
        return _rle(segmentation, size)
    if not isinstance(segmentation, Sequence) or isinstance(segmentation, str) or not segmentation:
        raise InputError(f"a segmentation must be polygons or RLE, not {shown(segmentation)}")
    if len(segmentation) > MOST_POLYGONS:
        raise InputError(f"a segmentation must have at most {MOST_POLYGONS} polygons, not {len(segmentation)}")
    for polygon in segmentation:
        _check_polygon(polygon, size)
    corners = [[float(value) for value in polygon] for polygon in segmentation]
    outline = sum(map(_outline, corners))
    if outline > LONGEST_OUTLINE:
        raise InputError(f"the outline of a mask must have at most {LONGEST_OUTLINE} pixels, not {outline:.0f}")
    return Polygons(corners)


def check_size(size: Sequence[int]) -> None:
    """Check the height and width of a mask.

    Raises:
        InputError: One is not in 1 to `LONGEST_SIDE` pixels.
    """
    if not all(1 <= side <= LONGEST_SIDE for side in size):
        raise InputError(f"height and width must be 1 to {LONGEST_SIDE} pixels, not {shown([*size])}")


def _check_polygon(polygon: Any, size: tuple[int, int]) -> None:
    if (
        not isinstance(polygon, Sequence)
        or isinstance(polygon, str)
        or len(polygon) < 6
        or len(polygon) % 2
        or not all(is_number(value) for value in polygon)
    ):
        raise InputError(f"a polygon must be at least 3 pairs of finite numbers, not {shown(polygon)}")
    if max(map(abs, polygon)) > FARTHEST * max(size):
        raise InputError(f"a polygon must lie in or near its image of {size[0]} x {size[1]}, not {shown(polygon)}")


def is_number(value: object) -> bool:
    """Whether a JSON value is a finite number within the range of a double."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return math.isfinite(value) if isinstance(value, float) else abs(value) < 1 << 1023


def _outline(polygon: list[float]) -> float:
    """Pixels from corner to corner, as pycocotools walks them: at least one for each corner."""
    xs, ys = polygon[::2], polygon[1::2]
    steps = zip(xs, ys, [*xs[1:], xs[0]], [*ys[1:], ys[0]], strict=True)
    return sum(max(abs(x1 - x0), abs(y1 - y0)) + 1 for x0, y0, x1, y1 in steps)


def _rle(segmentation: Mapping[str, Any], size: tuple[int, int]) -> Runs | Text:
    counts, stated = segmentation.get("counts"), segmentation.get("size")
    if not isinstance(stated, list | tuple) or [*stated] != [*size] or any(isinstance(side, bool) for side in stated):
        raise InputError(f"an RLE's size must be the image's [height, width] {[*size]}, not {shown(stated)}")
    pixels = size[0] * size[1]
    if isinstance(counts, list | str) and len(counts) > LONGEST_COUNTS:
        raise InputError(f"an RLE's counts may have {LONGEST_COUNTS} runs or characters, not {len(counts)}")
    if isinstance(counts, list):
        if not all(type(count) is int and count >= 0 for count in counts) or sum(counts) != pixels:
            raise InputError(f"an RLE's counts must be integers that sum to {pixels} pixels")
        return Runs(counts)
    if not isinstance(counts, str) or _pixels(counts) != pixels:
        raise InputError(f"an RLE's counts do not describe {pixels} pixels: {shown(counts)}")
    return Text(counts)


def _pixels(counts: str) -> int | None:
    """Total pixels of a compressed RLE's counts; None if malformed.

    pycocotools' encoding (``maskApi.c``): 5 bits per character, bit 6 marks continuation, from the third run on the
    difference to the run two before.
    """
    runs: list[int] = []
    value = shift = 0
    for character in counts:
        code = ord(character) - 48
        if not 0 <= code < 64:
            return None
        value |= (code & 0x1F) << shift
        shift += 5
        if code & 0x20:
            if shift > 60:
                return None
            continue
        if code & 0x10:
            value |= -1 << shift
        runs.append(value + (runs[-2] if len(runs) > 2 else 0))
        if runs[-1] < 0:
            return None
        value = shift = 0
    return None if shift else sum(runs)
