"""A SQLite database that is whole or absent, made once and by one process.

MLflow makes its tables one by one. Several processes at once would break them, and one that is stopped meanwhile would
leave a database that no later process can use.
"""

import fcntl
from collections.abc import Callable
from pathlib import Path
from uuid import uuid4

from pipeline.checkout import main_checkout

_SQLITE = "sqlite:///"


def anchored(uri: str) -> str:
    """A SQLite file's address with its whole path: MLflow keeps stores by address, whatever directory is current.

    A relative one is of the main checkout, also in the copy that DVC makes for an experiment.
    """
    path = _file(uri)
    return f"{_SQLITE}{main_checkout() / path}" if path else uri


def see_to_it(uri: str, make: Callable[[str], object]) -> None:
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


def _file(uri: str) -> Path | None:
    """The file of a plain SQLite address; None for databases in memory, options, and servers."""
    name = uri.removeprefix(_SQLITE)
    plain = uri.startswith(_SQLITE) and name and not name.startswith((":memory:", "file:")) and "?" not in name
    return Path(name) if plain else None
