"""Artifacts that are part of this package, named ``bundled:MODEL``."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from pipeline.core.errors import InputError

PREFIX = "bundled:"
ARTIFACTS: Mapping[str, Path] = MappingProxyType({"bundled_v2": Path(__file__).parents[1] / "teacher" / "bundled_v2"})
"""Directories of the bundled checkpoints, by model."""


def directory_of(source: Path | str) -> Path:
    """Directory of an artifact that is named by its path or as ``bundled:MODEL``.

    Raises:
        InputError: No bundled artifact has this name.
    """
    if not str(source).startswith(PREFIX):
        return Path(source)
    name = str(source).removeprefix(PREFIX)
    if name not in ARTIFACTS:
        known = ", ".join(f"{PREFIX}{model}" for model in ARTIFACTS)
        raise InputError(f"there is no bundled model {name!r}: choose {known}, or give an artifact's directory.")
    return ARTIFACTS[name]
