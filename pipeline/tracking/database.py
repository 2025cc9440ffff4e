"""Atomic creation of MLflow's SQLite database, and locks for its contents.

MLflow creates its tables one by one. Several processes doing so at once would corrupt them, and an interrupted one
would leave an unusable database.
"""

import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

from pipeline.core.checkout import main_checkout

_SQLITE = "sqlite:///"


def anchored(uri: str) -> str:
    """Make a SQLite URI absolute, since MLflow caches stores by URI, whatever the current directory.

    A relative path is resolved against the main checkout, also in a copy that DVC makes for an experiment.
    """
    path = _file(uri)
    return f"{_SQLITE}{main_checkout() / path}" if path else uri


def create_if_missing(uri: str, make: Callable[[str], object]) -> None:
    """Create the database if its file is missing; other URIs are ignored.

    Args:
        uri: URI of the database.
        make: Creates a database at a given URI; called with a temporary one.

    Raises:
        OSError: The directory cannot be written.
    """
    path = _file(uri)
    if path is None or path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f"{path.name}.lock").open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        if path.exists():
            return
        for leftover in path.parent.glob(f"{path.name}.*.part"):
            leftover.unlink()
        # A new name each time: a library that caches connections by URI would not create the file again.
        draft = path.with_name(f"{path.name}.{uuid4().hex[:8]}.part")
        make(f"{_SQLITE}{draft.absolute()}")
        draft.rename(path)


@contextmanager
def lock(uri: str, name: str) -> Iterator[None]:
    """Lock ``name`` in a database against other processes of this machine; waits until it is free.

    The lock file is beside a SQLite database; for a server it is in the user's state directory.

    Raises:
        OSError: The file's directory cannot be written.
    """
    key = hashlib.sha256(f"{uri} {name}".encode()).hexdigest()[:16]
    if path := _file(uri):
        lock_file = path.with_name(f"{path.name}.{key}.lock")
    else:
        state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        lock_file = Path(state, "sam-distillery", f"{key}.lock")
        lock_file.parent.mkdir(parents=True, exist_ok=True)
    with lock_file.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)  # released by the system when the process ends
        yield


def _file(uri: str) -> Path | None:
    """File of a plain SQLite URI; None for in-memory databases, URIs with options, and servers."""
    name = uri.removeprefix(_SQLITE)
    plain = uri.startswith(_SQLITE) and name and not name.startswith((":memory:", "file:")) and "?" not in name
    return Path(name) if plain else None
