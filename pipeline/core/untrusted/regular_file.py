"""Bytes of regular files. FIFOs, devices, directories and link loops are refused without waiting for them."""

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from pipeline.core.errors import InputError

_KINDS = {
    stat.S_IFDIR: "a directory",
    stat.S_IFIFO: "a FIFO",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


class MissingFileError(InputError):
    """There is no file of this name."""


@contextmanager
def opened(path: Path, *, name: str | None = None, remedy: str = "Restore it.") -> Iterator[IO[bytes]]:
    """Open a regular file, or a link to one, for reading.

    Args:
        path: The file.
        name: Name used in errors; default: the path.
        remedy: Sentence that ends an error.

    Raises:
        MissingFileError: There is no such file.
        InputError: It is of another kind, or cannot be opened or read.
    """
    name = repr(str(path))[1:-1] if name is None else name
    try:
        # Without O_NONBLOCK, opening a FIFO waits for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise MissingFileError(f"{name} cannot be read ({error.strerror}). {remedy}") from None
    except OSError as error:
        raise InputError(f"{name} cannot be read ({error.strerror}). {remedy}") from None
    except ValueError as error:  # NUL, or a character the file system's encoding lacks
        raise InputError(f"{name} is not a file name ({error}). {remedy}") from None
    mode = os.fstat(descriptor).st_mode
    if not stat.S_ISREG(mode):
        os.close(descriptor)
        kind = _KINDS.get(stat.S_IFMT(mode), "not a regular file")
        raise InputError(f"{name} cannot be read (Is {kind}). {remedy}")
    with os.fdopen(descriptor, "rb") as stream:
        try:
            yield stream
        except OSError as error:
            if error.filename is not None:  # of another file
                raise
            raise InputError(f"{name} cannot be read ({error.strerror or error}). {remedy}") from None


def check_regular(path: Path, *, remedy: str = "Restore it.") -> None:
    """Check that a file can be opened and is regular, before a library opens it by its name; see `opened`.

    Raises:
        MissingFileError: There is no such file.
        InputError: It is of another kind, or cannot be opened.
    """
    with opened(path, remedy=remedy):
        pass


def read_bytes(path: Path, limit: int, *, name: str | None = None, remedy: str = "Restore it.") -> bytes:
    """All bytes of a regular file.

    Args:
        path: The file.
        limit: Largest accepted size in bytes.
        name: Name used in errors; default: the path.
        remedy: Sentence that ends an error.

    Raises:
        MissingFileError: There is no such file.
        InputError: It is of another kind, too large, or cannot be read.
    """
    with opened(path, name=name, remedy=remedy) as stream:
        size = os.fstat(stream.fileno()).st_size
        data = b"" if size > limit else stream.read(limit + 1)
    if max(size, len(data)) > limit:
        shown = path if name is None else name
        raise InputError(f"{shown} has {max(size, len(data)):,} bytes, more than {limit:,}. {remedy}")
    return data


def read_text(path: Path, limit: int, *, name: str | None = None, remedy: str = "Restore it.") -> str:
    """All of a UTF-8 text file; see `read_bytes`.

    Raises:
        MissingFileError: There is no such file.
        InputError: It is of another kind, too large, not UTF-8, or cannot be read.
    """
    data = read_bytes(path, limit, name=name, remedy=remedy)
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        shown = path if name is None else name
        raise InputError(f"{shown} is not UTF-8 text (byte {error.start}). {remedy}") from None
