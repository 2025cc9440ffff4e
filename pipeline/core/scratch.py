"""Files from which an interrupted stage resumes, kept until its artifact is safe.

Under DVC an artifact is safe only once DVC has put it into its cache and into dvc.lock. If DVC is killed before that,
it runs the stage again, which then resumes from its last checkpoint.
"""

import json
import os
import shutil
from collections.abc import Iterable
from pathlib import Path


def release(record: Path, paths: Iterable[Path]) -> None:
    """Delete ``paths`` of a finished artifact; under DVC note them in ``record``, for `discard`."""
    if "DVC_STAGE" not in os.environ:
        delete(paths)
    elif existing := [str(path) for path in paths if path.exists()]:
        record.write_text(json.dumps(existing))


def discard(record: Path) -> None:
    """Delete what `release` noted in ``record``, if it exists. Call only once the artifact is in DVC's cache."""
    try:
        paths = json.loads(record.read_text())
    except (FileNotFoundError, ValueError):  # the latter: written by a killed process, whose stage will run again
        return
    delete(map(Path, paths))
    record.unlink(missing_ok=True)


def delete(paths: Iterable[Path]) -> None:
    """Delete files and directories, if they exist."""
    for path in paths:
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
