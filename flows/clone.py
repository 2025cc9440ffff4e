"""The clone that a worker works in: where it is, and how it comes to hold another machine's commit and parameters."""

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
_OURS = (str(PARAMS), str(DVC_LOCK))
"""Files that runs change and that a hand-over brings along."""
_LOCK = Path(".dvc/tmp/worker.lock")
_HANDED = Path(".dvc/tmp/handed")
"""There while a hand-over's files lie in the clone: what a killed one left may be thrown away, a person's may not."""


def enter() -> dict[str, str]:
    """Step before a deployed flow: go to the worker's clone, which is where its code is and its results will be."""
    clone = os.environ.get(CLONE)
    if clone is None:
        raise InputError(f"{CLONE} is not set: start workers with `python -m flows.worker`.")
    os.chdir(clone)
    return {"directory": clone}


def commit() -> str:
    """The commit that another machine needs to have the code of this one.

    Raises:
        InputError: Files under git differ from it, so that another machine could not have them.
    """
    if changed := [name for name in _changed() if name not in _OURS]:
        raise InputError(
            f"{', '.join(changed)} differ from the last commit, and a worker elsewhere has only what is committed: "
            "commit and push them."
        )
    if not _git("branch", "--remotes", "--contains", "HEAD"):
        raise InputError("the last commit is in no remote branch, where workers could fetch it: push it.")
    return _git("rev-parse", "HEAD")


@contextmanager
def held() -> Iterator[None]:
    """Keep the clone for one release or one hand-over at a time.

    Raises:
        InputError: It is in use.
    """
    _LOCK.parent.mkdir(parents=True, exist_ok=True)
    with _LOCK.open("a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                f"{Path.cwd()} is in use by another release or worker: give each a clone of its own."
            ) from None
        yield


@contextmanager
def at(wanted: str, params: str, lock: str) -> Iterator[None]:
    """Hold the clone at a commit, with another machine's parameters and lock file, and clean up after.

    Args:
        wanted: The commit, which the clone has or fetches.
        params: Text of params.yaml.
        lock: Text of dvc.lock; empty where there is none.

    Raises:
        InputError: The clone is in use or has changes of its own, or no remote of it has the commit.
    """
    with held():
        if _HANDED.exists():
            _reset()
        if changed := _changed():
            raise InputError(
                f"the worker's clone {Path.cwd()} has changes in {', '.join(changed)}: undo or commit them, "
                "or give the worker a clone of its own."
            )
        branch = _git("rev-parse", "--abbrev-ref", "HEAD")
        _HANDED.touch()
        try:
            _check_out(wanted)
            PARAMS.write_text(params)
            DVC_LOCK.write_text(lock) if lock else DVC_LOCK.unlink(missing_ok=True)
            yield
        finally:
            _reset()
            if branch != "HEAD":
                _git("checkout", "--quiet", branch)


def _check_out(wanted: str) -> None:
    if _git("rev-parse", "HEAD") == wanted:
        return
    if not _has(wanted):
        _git("fetch", "--quiet", "--all")
    if not _has(wanted):
        raise InputError(f"no remote of the worker's clone {Path.cwd()} has commit {wanted}: push it.")
    _git("checkout", "--quiet", "--detach", wanted)


def _has(wanted: str) -> bool:
    return subprocess.run(["git", "cat-file", "-e", f"{wanted}^{{commit}}"], capture_output=True).returncode == 0


def _changed() -> list[str]:
    """Files that differ from the commit; of those that git does not know, the ones that DVC would count as code."""
    known = _git("status", "--porcelain", "--untracked-files=no").splitlines()
    new = _git("status", "--porcelain", "--untracked-files=all", "--", "pipeline", "flows", "deps", *_OURS).splitlines()
    return list(dict.fromkeys(line.split(maxsplit=1)[1] for line in (*known, *new)))


def _reset() -> None:
    """Bring the files back that a hand-over writes over; what a worker that was killed left in them goes."""
    for name in _OURS:
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
