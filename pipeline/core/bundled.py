"""Artifacts that are part of this package, named ``bundled:MODEL``."""

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from pipeline.core.errors import InputError

PREFIX = "bundled:"
_FOLDER = Path(__file__).parents[1] / "teacher"
TEACHERS: Mapping[str, Path] = MappingProxyType({"bundled_v2": _FOLDER / "bundled_v2"})
"""Directories of the bundled teachers, by model."""
STUDENTS: Mapping[str, Path] = MappingProxyType(
    {name: _FOLDER / name for name in ("efficientvit_sam_nano", "tinysam_nano", "sam_lightening_nano")}
)
"""Directories of the bundled students, by model. Each holds an image encoder; the rest is its teacher's."""
ARTIFACTS: Mapping[str, Path] = MappingProxyType({**TEACHERS, **STUDENTS})


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
