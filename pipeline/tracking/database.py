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

from pipeline.core.tracking_uri import sqlite_file, sqlite_uri


def create_if_missing(uri: str, make: Callable[[str], object]) -> None:
    """Create the database if its file is missing; other URIs are ignored.

    Args:
        uri: URI of the database.
        make: Creates a database at a given URI; called with a temporary one.

    Raises:
        OSError: The directory cannot be written.
    """
    path = sqlite_file(uri)
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
        make(sqlite_uri(draft))
        draft.rename(path)


@contextmanager
def lock(uri: str, name: str) -> Iterator[None]:
    """Lock ``name`` in a database against other processes of this machine; waits until it is free.

    The lock file is beside a SQLite database; for a server it is in the user's state directory.

    Raises:
        OSError: The file's directory cannot be written.
    """
    key = hashlib.sha256(f"{uri} {name}".encode()).hexdigest()[:16]
    if path := sqlite_file(uri):
        lock_file = path.with_name(f"{path.name}.{key}.lock")
    else:
        state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        lock_file = Path(state, "sam-distillery", f"{key}.lock")
        lock_file.parent.mkdir(parents=True, exist_ok=True)
    with lock_file.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)  # released by the system when the process ends
        yield
