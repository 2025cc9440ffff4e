"""Tars read in place: nothing is unpacked, and names never become paths."""

import tarfile
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.core.errors import InputError
from pipeline.core.untrusted.regular_file import opened

MOST_MEMBERS = 1_000_000
LARGEST_MEMBER = 1 << 30
"""Bytes."""
LONGEST_HEADER = 1 << 20
"""Bytes of a header with a long name or further keys."""


class Part(tuple[int, int]):
    """Offset and length of a member's bytes in its tar."""

    __slots__ = ()


def parts(path: Path, suffixes: tuple[str, ...], *, remedy: str) -> Mapping[str, Mapping[str, Part]]:
    """Where the regular files of a tar with these suffixes lie, by stem and suffix.

    Args:
        path: An uncompressed tar.
        suffixes: For example ``(".jpg", ".json")``; other members are left out.
        remedy: Sentence that ends an error.

    Raises:
        InputError: It is not a regular file, is damaged, exceeds a bound, or two members have the same name.
    """
    result: dict[str, dict[str, Part]] = {}
    with opened(path, remedy=remedy) as stream:
        size = stream.seek(0, 2)
        stream.seek(0)
        try:
            with tarfile.open(fileobj=stream, mode="r:", tarinfo=_Header, errors="surrogateescape") as tar:
                for number, info in enumerate(tar, start=1):
                    _check(info, number, size)
                    name = PurePosixPath(info.name)
                    if info.isreg() and not info.issparse() and name.suffix in suffixes:
                        files = result.setdefault(name.stem, {})
                        if name.suffix in files:
                            raise _BoundError(f"{name.name!r:.100} occurs twice")
                        files[name.suffix] = Part((info.offset_data, info.size))
        except (tarfile.TarError, _BoundError, ValueError, OverflowError, RecursionError, EOFError) as error:
            raise InputError(f"{path} is not a readable tar ({error}). {remedy}") from None
    return result


class _BoundError(Exception):
    """A tar exceeds a bound."""


class _Header(tarfile.TarInfo):
    """A header whose size is checked before the reader seeks or allocates by it."""

    @classmethod
    def frombuf(cls, buf: Any, encoding: str, errors: str) -> "_Header":
        info: _Header = super().frombuf(buf, encoding, errors)
        metadata = info.type in (*tarfile.GNU_TYPES, tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE)
        if info.size < 0 or (metadata and info.type != tarfile.GNUTYPE_SPARSE and info.size > LONGEST_HEADER):
            raise _BoundError(f"a header states {info.size} bytes")
        return info


def _check(info: tarfile.TarInfo, number: int, size: int) -> None:
    if number > MOST_MEMBERS:
        raise _BoundError(f"more than {MOST_MEMBERS} members")
    if not 0 <= info.size <= LARGEST_MEMBER or not 0 <= info.offset_data <= size:
        raise _BoundError(f"member {number} states {info.size} bytes, more than {LARGEST_MEMBER}")
