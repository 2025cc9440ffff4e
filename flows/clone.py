"""A worker's clone: its location, its lock, and check-out of another machine's commit and parameters."""

import fcntl
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.core.config import PARAMS
from pipeline.core.errors import InputError
from pipeline.core.stage import DVC_LOCK

CLONE = "SAM_DISTILLERY_CLONE"
"""Environment variable of a worker: the clone it was started in."""
_HANDED_FILES = (str(PARAMS), str(DVC_LOCK))
"""Files that runs change and that are handed over with a stage."""
_LOCK = Path(".dvc/tmp/worker.lock")
_HANDED = Path(".dvc/tmp/handed")
"""Marks that handed-over files are checked out: leftovers of a killed run may be discarded, a person's changes not."""


def enter() -> dict[str, str]:
    """Pull step of a deployed flow: change to the worker's clone, which has its code and receives its results."""
    clone = os.environ.get(CLONE)
    if clone is None:
        raise InputError(f"{CLONE} is not set: start workers with `python -m flows.worker`.")
    os.chdir(clone)
    return {"directory": clone}


def commit() -> str:
    """The commit that gives another machine this one's code.

    Raises:
        InputError: The working tree has uncommitted changes, or the commit is not pushed.
    """
    if changed := [name for name in _changed() if name not in _HANDED_FILES]:
        raise InputError(
            f"{', '.join(changed)} differ from the last commit, but remote workers have only committed files: "
            "commit and push them."
        )
    if not _git("branch", "--remotes", "--contains", "HEAD"):
        raise InputError("the last commit is in no remote branch, so workers cannot fetch it: push it.")
    return _git("rev-parse", "HEAD")


@contextmanager
def lock() -> Iterator[None]:
    """Lock the clone for one release or one handed-over stage at a time.

    Raises:
        InputError: It is in use.
    """
    _LOCK.parent.mkdir(parents=True, exist_ok=True)
    with _LOCK.open("a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{Path.cwd()} is in use by another release or worker: use a separate clone for each."
            ) from None
        yield


@contextmanager
def check_out(revision: str, params: str, dvc_lock: str) -> Iterator[None]:
    """Check out a commit with another machine's parameters and dvc.lock, and restore the clone afterwards.

    Args:
        revision: Commit hash; fetched if the clone lacks it.
        params: Text of params.yaml.
        dvc_lock: Text of dvc.lock; empty if there is none.

    Raises:
        InputError: The clone is in use or has local changes, or no remote has the commit.
    """
    with lock():
        if _HANDED.exists():
            _reset()
        if changed := _changed():
            raise InputError(
                f"the worker's clone {Path.cwd()} has changes in {', '.join(changed)}: undo or commit them, "
                "or use a separate clone for the worker."
            )
        branch = _git("rev-parse", "--abbrev-ref", "HEAD")
        _HANDED.touch()
        try:
            _switch_to(revision)
            PARAMS.write_text(params)
            DVC_LOCK.write_text(dvc_lock) if dvc_lock else DVC_LOCK.unlink(missing_ok=True)
            yield
        finally:
            _reset()
            if branch != "HEAD":
                _git("checkout", "--quiet", branch)


def _switch_to(revision: str) -> None:
    if _git("rev-parse", "HEAD") == revision:
        return
    if not _has(revision):
        _git("fetch", "--quiet", "--all")
    if not _has(revision):
        raise InputError(f"no remote of the worker's clone {Path.cwd()} has commit {revision}: push it.")
    _git("checkout", "--quiet", "--detach", revision)


def _has(revision: str) -> bool:
    return subprocess.run(["git", "cat-file", "-e", f"{revision}^{{commit}}"], capture_output=True).returncode == 0


def _changed() -> list[str]:
    """Files that differ from the commit, and untracked files that DVC would treat as code."""
    known = _git("status", "--porcelain", "--untracked-files=no").splitlines()
    new = _git(
        "status", "--porcelain", "--untracked-files=all", "--", "pipeline", "flows", "deps", *_HANDED_FILES
    ).splitlines()
    return list(dict.fromkeys(line.split(maxsplit=1)[1] for line in (*known, *new)))


def _reset() -> None:
    """Restore the files that a hand-over overwrites."""
    for name in _HANDED_FILES:
        if _git("ls-files", name):
            _git("checkout", "--quiet", "--", name)
        else:
            Path(name).unlink(missing_ok=True)
    _HANDED.unlink(missing_ok=True)


def _git(*arguments: str) -> str:
    done = subprocess.run(["git", *arguments], capture_output=True, text=True)
    if done.returncode:
        raise InputError(f"`git {' '.join(arguments)}` failed in {Path.cwd()}: {done.stderr.strip()[-300:]}")
    return done.stdout.strip()
