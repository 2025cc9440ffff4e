"""Which code decides a result: the modules that one imports, those that these import, and so on.

Imports are read from the source, those inside functions included; nothing is imported for it, so this costs
milliseconds. A package's ``__init__`` counts where a name is taken from it, not where one of its modules is: else
every module of a package would hang on all the others.

The frame, ``pipeline/core``, does not count. How a stage is told its settings, reports progress and puts its result
away is the same for all stages and shows in no result; a change there must not train everything anew. What reads,
computes, rounds or writes a value is not frame. A change in the frame that does alter results (how floats are written,
say) is to be followed by `dvc repro --force`.

DVC's dependencies, the checkpoints of trainings, the store of embeddings and unfinished evaluations all go by this.
"""

import ast
import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from pipeline.core.artifact import file_sha256

_PACKAGE = Path(__file__).parents[1]
ROOT = _PACKAGE.parent
"""Paths are relative to it."""
VERSIONS = "deps/versions.yaml"
"""Of libraries that decide results, as requirements.lock has them."""
_FRAME = f"{_PACKAGE.name}.core"


@cache
def closure(*modules: str) -> frozenset[str]:
    """The files that decide what these modules do, theirs included: ``{"pipeline/ops/geometry.py", ...}``.

    Args:
        modules: Dotted names. One that is not this package's has no files.
    """
    found, left = set[str](), list(modules)
    while left:
        name = left.pop()
        if name not in found and not of_frame(name) and _file(name):
            found.add(name)
            left += _imported(name)
    return frozenset(path.relative_to(ROOT).as_posix() for name in found if (path := _file(name)))


@cache
def digest(*modules: str, without: frozenset[str] = frozenset()) -> str:
    """SHA-256 of names and bytes of the files that decide what these modules do, in hex.

    Args:
        modules: As of `closure`.
        without: Files of the closure that do not count.
    """
    lines = (f"{path} {file_sha256(ROOT / path)}" for path in sorted(closure(*modules) - without))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def of_frame(name: str) -> bool:
    """Whether a module, by its dotted name, belongs to the frame: ``pipeline.core``, or ``pipeline`` itself."""
    return name == _PACKAGE.name or name == _FRAME or name.startswith(f"{_FRAME}.")


def module(path: str) -> str:
    """The dotted name of a module's file."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def sources(start: str, named: set[str]) -> list[str]:
    """What decides the result of one module, and of files and folders that no import tells of; folded.

    Args:
        start: The module, dotted.
        named: Paths; those of modules (``.py``) count with all that they import.
    """
    return fold(named | closure(start, *(module(path) for path in named if path.endswith(".py"))))


def versions(libraries: Iterable[str]) -> list[dict[str, list[str]]]:
    """DVC's parameters that tell when the locked version of one of these libraries changes; none for none."""
    return [{VERSIONS: names}] if (names := list(libraries)) else []


def fold(paths: Iterable[str]) -> list[str]:
    """Sorted paths, with a folder in place of its files where all of them are there."""
    files = {file for path in paths for file in (_files(ROOT / path) if (ROOT / path).is_dir() else [path])}
    folders = {parent.as_posix() for file in files for parent in Path(file).parents if parent.name}
    whole = {folder for folder in folders if files.issuperset(_files(ROOT / folder))}
    top = {folder for folder in whole if not whole & {parent.as_posix() for parent in Path(folder).parents}}
    return sorted(top | {file for file in files if not top & {parent.as_posix() for parent in Path(file).parents}})


def _files(folder: Path) -> list[str]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.parent.name != "__pycache__")
    return [path.relative_to(ROOT).as_posix() for path in files]


def _file(name: str) -> Path | None:
    """The file of one of this package's modules; None for what is no module, or another package's."""
    first, *parts = name.split(".")
    if first != _PACKAGE.name:
        return None
    place = _PACKAGE.joinpath(*parts)
    return next((path for path in (place / "__init__.py", place.with_suffix(".py")) if path.is_file()), None)


@cache
def _imported(name: str) -> frozenset[str]:
    """What one of this package's modules imports, also of other packages."""
    path = _file(name)
    assert path is not None
    found = set[str]()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = name.split(".")[: -node.level + (path.name == "__init__.py") or None] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            names = (f"{base}.{alias.name}" for alias in node.names)
            found |= {each if _file(each) else base for each in names}
    return frozenset(found)
