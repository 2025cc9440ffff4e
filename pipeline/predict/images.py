"""The images of a prediction: a folder, one file, or a text file that lists files."""

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from pipeline.core.errors import InputError
from pipeline.core.progress import notice
from pipeline.core.untrusted.image_file import leading_out
from pipeline.core.untrusted.regular_file import read_text
from pipeline.data.folder import image_files
from pipeline.data.photograph import SUFFIXES

_LONGEST_LIST = 1 << 28
"""Bytes of a text file that lists images."""


@dataclass(frozen=True)
class Images:
    """Image files below one folder."""

    root: Path
    names: list[str]
    """Sorted names relative to ``root``, with ``/``."""
    whole_folder: bool
    """Whether these are all images of ``root``."""


def images_of(source: Path, out: Path) -> Images:
    """List the images of ``source``.

    Args:
        source: A folder, which is read recursively; an image; or a text file with one path per line, relative to the
            text file's folder. Names are then relative to the deepest folder that contains all of them.
        out: Folder of results, which is left out.

    Raises:
        InputError: ``source`` does not exist, is of another kind, holds no images, or lists an image twice.
    """
    if source.is_dir():
        root, results = source.resolve(), out.resolve()
        names = [name for name in image_files(source) if not (root / name).is_relative_to(results)]
        if not names:
            raise InputError(f"{source} holds no images besides the results in {out}: give the folder of the images.")
        if outside := leading_out(source, names):
            notice(f"{len(outside)} images are links to files outside of {source}, the first one {outside[0]!r:.100}.")
        return Images(source, names, whole_folder=True)
    if not source.is_file():
        raise InputError(f"{source} does not exist: give a folder, an image, or a text file that lists images.")
    if source.suffix.lower() in SUFFIXES:
        return Images(source.parent, [source.name], whole_folder=False)
    return _listed(source)


def _listed(source: Path) -> Images:
    """The images that a text file lists."""
    suffixes = ", ".join(sorted(SUFFIXES))
    remedy = f"Give a folder, an image ({suffixes}) or a text file that lists images."
    lines = [line.strip() for line in read_text(source, _LONGEST_LIST, remedy=remedy).splitlines()]
    paths = [os.path.abspath(source.parent / line) for line in lines if line]
    if not paths:
        raise InputError(f"{source} lists no images: write one path per line.")
    path, count = Counter(paths).most_common(1)[0]
    if count > 1:
        raise InputError(f"{source} lists {path} {count} times: each image may be listed once.")
    root = Path(os.path.commonpath([os.path.dirname(path) for path in paths]))
    return Images(root, sorted(Path(path).relative_to(root).as_posix() for path in paths), whole_folder=False)
