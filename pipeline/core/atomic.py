"""Atomic writes: a file appears under its name only when it is complete."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def draft_of(path: Path) -> Path:
    """Temporary file that `replacing` renames to ``path``; a killed process leaves it behind."""
    return path.with_name(f".{path.name}.part")


@contextmanager
def replacing(path: Path, *, per_process: bool = False, fsync: bool = False) -> Iterator[Path]:
    """Yield a temporary file beside ``path`` to write to, and rename it to ``path`` unless the body raises.

    Args:
        path: The file to create or replace; its directory must exist.
        per_process: Add the process id to the temporary name, for files that several processes write concurrently.
        fsync: Flush the file to disk before renaming, so that a power failure leaves the old or the new one.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}.part") if per_process else draft_of(path)
    try:
        yield draft
        if fsync:
            with draft.open("rb+") as stream:
                os.fsync(stream.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)
