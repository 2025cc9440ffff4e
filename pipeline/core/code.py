"""The code that decides a result: a module and everything it imports, transitively.

Imports are parsed from the source, including those inside functions; nothing is imported, so this takes milliseconds. A
package's ``__init__`` counts if a name is imported from it, but not if one of its modules is: otherwise every module of
a package would depend on all the others.

The framework, ``pipeline/core``, is excluded. Reading settings, reporting progress and storing results are the same for
all stages and do not affect results; a change there must not retrain everything. Code that reads, computes, rounds or
writes values does not belong there. After a framework change that does alter results (for example the formatting of
floats), run `dvc repro --force`.

DVC's dependencies, training checkpoints, the store of embeddings and unfinished evaluations all rely on this.
"""

import ast
import hashlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from pipeline.core.artifact import file_sha256

_PACKAGE = Path(__file__).parents[1]
ROOT = _PACKAGE.parent
"""Base of all relative paths."""
VERSIONS = "deps/versions.yaml"
"""Versions of libraries that decide results, as in requirements.lock."""
_FRAME = f"{_PACKAGE.name}.core"


@cache
def closure(*modules: str) -> frozenset[str]:
    """Files of these modules and of everything they import: ``{"pipeline/ops/geometry.py", ...}``.

    Args:
        modules: Dotted names. Modules outside this package have no files.
    """
    visited, pending = set[str](), list(modules)
    while pending:
        name = pending.pop()
        if name not in visited and not of_frame(name) and _file(name):
            visited.add(name)
            pending += _imported(name)
    return frozenset(path.relative_to(ROOT).as_posix() for name in visited if (path := _file(name)))


@cache
def digest(*modules: str, without: frozenset[str] = frozenset()) -> str:
    """SHA-256 of names and bytes of the files in `closure`, in hex.

    Args:
        modules: As for `closure`.
        without: Files to exclude.
    """
    lines = (f"{path} {file_sha256(ROOT / path)}" for path in sorted(closure(*modules) - without))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def of_frame(name: str) -> bool:
    """Whether a dotted module name belongs to the framework: ``pipeline.core``, or ``pipeline`` itself."""
    return name == _PACKAGE.name or name == _FRAME or name.startswith(f"{_FRAME}.")


def module(path: str) -> str:
    """Convert the path of a module's file to its dotted name."""
    return path.removesuffix(".py").removesuffix("/__init__").replace("/", ".")


def sources(start: str, named: set[str]) -> list[str]:
    """Folded closure of a module and of additional paths that are not imported.

    Args:
        start: Dotted name of the module.
        named: Additional files and folders; modules (``.py``) are included with everything they import.
    """
    return fold(named | closure(start, *(module(path) for path in named if path.endswith(".py"))))


def versions(libraries: Iterable[str]) -> list[dict[str, list[str]]]:
    """DVC parameter entries that make a stage depend on the locked versions of these libraries."""
    return [{VERSIONS: names}] if (names := list(libraries)) else []


def fold(paths: Iterable[str]) -> list[str]:
    """Sorted paths, with a folder replacing its files if all of them are included."""
    files = {file for path in paths for file in (_files(ROOT / path) if (ROOT / path).is_dir() else [path])}
    folders = {parent.as_posix() for file in files for parent in Path(file).parents if parent.name}
    whole = {folder for folder in folders if files.issuperset(_files(ROOT / folder))}
    top = {folder for folder in whole if not whole & {parent.as_posix() for parent in Path(folder).parents}}
    return sorted(top | {file for file in files if not top & {parent.as_posix() for parent in Path(file).parents}})


def _files(folder: Path) -> list[str]:
    files = (path for path in folder.rglob("*") if path.is_file() and path.parent.name != "__pycache__")
    return [path.relative_to(ROOT).as_posix() for path in files]


def _file(name: str) -> Path | None:
    """File of one of this package's modules; None for other names."""
    first, *parts = name.split(".")
    if first != _PACKAGE.name:
        return None
    base = _PACKAGE.joinpath(*parts)
    return next((path for path in (base / "__init__.py", base.with_suffix(".py")) if path.is_file()), None)


@cache
def _imported(name: str) -> frozenset[str]:
    """Dotted names that one of this package's modules imports, including other packages'."""
    path = _file(name)
    assert path is not None
    imported = set[str]()
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = name.split(".")[: -node.level + (path.name == "__init__.py") or None] if node.level else []
            base = ".".join([*above, *filter(None, [node.module])])
            names = (f"{base}.{alias.name}" for alias in node.names)
            imported |= {name if _file(name) else base for name in names}
    return frozenset(imported)
