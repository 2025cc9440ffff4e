"""Results of finished images on disk, from which an interrupted prediction resumes."""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from pipeline.core.errors import InputError
from pipeline.core.untrusted import json_file
from pipeline.core.untrusted.regular_file import check_regular

DIRECTORY = ".partial"
_FILE = "results.jsonl"


class Finished:
    """Results by image, one line each in a file; only their positions are kept in memory.

    Args:
        stream: The file, open for reading and appending.
        identity: What all results depend on besides their image. Results of another identity are deleted.
    """

    def __init__(self, stream: IO[bytes], identity: str) -> None:
        self._stream = stream
        self._position: dict[str, int] = {}
        self._digests: dict[str, str] = {}
        end = self._read(identity)
        stream.truncate(end)
        stream.seek(0, os.SEEK_END)
        if end == 0:
            self._append({"identity": identity})

    def __contains__(self, key: tuple[str, str]) -> bool:
        name, digest = key
        return self._digests.get(name) == digest

    def __getitem__(self, name: str) -> dict[str, Any]:
        self._stream.seek(self._position[name])
        result: dict[str, Any] = json.loads(self._stream.readline())["result"]
        return result

    def add(self, name: str, digest: str, result: dict[str, Any]) -> None:
        """Store the result of one image, made from inputs with this ``digest``."""
        self._position[name] = self._append({"name": name, "digest": digest, "result": result})
        self._digests[name] = digest

    def _append(self, line: dict[str, Any]) -> int:
        start = self._stream.seek(0, os.SEEK_END)
        self._stream.write(json.dumps(line, allow_nan=False).encode() + b"\n")
        self._stream.flush()
        return start

    def _read(self, identity: str) -> int:
        """Index complete lines; returns where they end, 0 if they are of another identity."""
        self._stream.seek(0)
        end = 0
        for line in self._stream:
            try:
                entry = json_file.parse(line, _FILE) if line.endswith(b"\n") else {}
            except InputError:
                break
            if end == 0:
                if entry != {"identity": identity}:
                    return 0
            elif isinstance(entry, dict) and entry.keys() == {"name", "digest", "result"} and _named(entry):
                self._position[entry["name"]], self._digests[entry["name"]] = end, entry["digest"]
            else:
                break
            end += len(line)
        return end


def _named(entry: dict[str, Any]) -> bool:
    return isinstance(entry["name"], str) and isinstance(entry["digest"], str) and isinstance(entry["result"], dict)


@contextmanager
def finished(out: Path, identity: str) -> Iterator[Finished]:
    """Open the results of an earlier run with this identity in ``out``, or start anew.

    Raises:
        InputError: Another process is writing to ``out``.
    """
    directory = out / DIRECTORY
    directory.mkdir(parents=True, exist_ok=True)
    if os.path.lexists(directory / _FILE):
        check_regular(directory / _FILE, remedy="Delete it.")
    with (directory / _FILE).open("a+b") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise InputError(f"another process is writing to {out}: wait for it, or give another --out.") from None
        yield Finished(stream, identity)


def discard(out: Path) -> None:
    """Delete the stored results."""
    (out / DIRECTORY / _FILE).unlink(missing_ok=True)
    (out / DIRECTORY).rmdir()
