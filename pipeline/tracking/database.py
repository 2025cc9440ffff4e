"""A SQLite database that is whole or absent, made once and by one process; locks for what is in a database.

MLflow makes its tables one by one. Several processes at once would break them, and one that is stopped meanwhile would
leave a database that no later process can use.
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
    """A SQLite file's address with its whole path: MLflow keeps stores by address, whatever directory is current.

    A relative one is of the main checkout, also in the copy that DVC makes for an experiment.
    """
    path = _file(uri)
    return f"{_SQLITE}{main_checkout() / path}" if path else uri


def create_if_missing(uri: str, make: Callable[[str], object]) -> None:
    """Make the database where its file is missing; other addresses are left to whoever opens them.

    Args:
        uri: Its address.
        make: Makes one at the address it is given, which is another one at first.

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
        for left in path.parent.glob(f"{path.name}.*.part"):
            left.unlink()
        # A new name each time: a library that keeps connections by address would not make the file again.
        draft = path.with_name(f"{path.name}.{uuid4().hex[:8]}.part")
        make(f"{_SQLITE}{draft.absolute()}")
        draft.rename(path)


@contextmanager
def held(uri: str, name: str) -> Iterator[None]:
    """Wait until no other process of this machine holds ``name`` of a database, and hold it.

    The lock is a file beside a SQLite database, and for a server one among this user's files.

    Raises:
        OSError: The file's directory cannot be written.
    """
    key = hashlib.sha256(f"{uri} {name}".encode()).hexdigest()[:16]
    if path := _file(uri):
        lock = path.with_name(f"{path.name}.{key}.lock")
    else:
        state = os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state"
        lock = Path(state, "sam-distillery", f"{key}.lock")
        lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)  # the system drops it when the process ends, however it ends
        yield


def _file(uri: str) -> Path | None:
    """The file of a plain SQLite address; None for databases in memory, options, and servers."""
    name = uri.removeprefix(_SQLITE)
    plain = uri.startswith(_SQLITE) and name and not name.startswith((":memory:", "file:")) and "?" not in name
    return Path(name) if plain else None
