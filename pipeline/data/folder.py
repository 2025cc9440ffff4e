"""A plain folder of images without labels, for embedding distillation."""

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from pipeline.core.errors import InputError
from pipeline.data.photograph import SUFFIXES

LONGEST_KEY = 80
"""Characters of a key; keeps names within a plain tar header."""


def image_files(directory: Path) -> list[str]:
    """Sorted relative names of all image files below ``directory``, without hidden ones.

    Raises:
        InputError: There is no such folder, or it has no images.
    """
    if not directory.is_dir():
        raise InputError(f"{directory} is not a folder: correct the path in params.yaml or put the images there.")
    names = sorted(
        path.relative_to(directory).as_posix()
        for path in directory.rglob("*")
        if path.suffix.lower() in SUFFIXES and path.is_file()
    )
    names = [name for name in names if not any(part.startswith(".") for part in name.split("/"))]
    if not names:
        raise InputError(f"{directory} holds no images: put some there ({', '.join(sorted(SUFFIXES))}).")
    return names


def unique_keys(names: Sequence[str]) -> list[str]:
    """A key for each file name: its path without suffix, in characters that are safe in tars and file systems.

    Names that this would alter or make ambiguous get a short hash of the whole name, so that keys are unique and depend
    only on the names.

    Args:
        names: Distinct relative file names, with ``/``.
    """
    plain = [re.sub(r"[^A-Za-z0-9_-]", "_", name.rpartition(".")[0] or name) for name in names]
    counts = Counter(key.lower() for key in plain)
    keys = []
    for name, key in zip(names, plain, strict=True):
        if counts[key.lower()] > 1 or len(key) > LONGEST_KEY or key != name.rpartition(".")[0]:
            suffix = hashlib.sha256(name.encode()).hexdigest()[:12]
            key = f"{key[: LONGEST_KEY - 13]}-{suffix}"
        keys.append(key)
    return keys
