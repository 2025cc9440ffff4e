"""Where a run comes from: the commit of the source, and whether its process still lives."""

import subprocess
from dataclasses import dataclass

import psutil

_CODE = "pipeline"


def alive(pid: str, started: float) -> bool:
    """Whether the process that began a run at ``started`` lives; a later process may have taken its number."""
    try:
        return pid.isdecimal() and psutil.Process(int(pid)).create_time() <= started + 1
    except psutil.NoSuchProcess:
        return False


def git() -> dict[str, str]:
    """Commit of the source, and whether the working tree differs from it; empty outside a repository."""
    try:
        head = _git_output("rev-parse", "HEAD")
        dirty = _git_output("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"mlflow.source.git.commit": head, "git.commit": head, "git.dirty": str(bool(dirty)).lower()}


@dataclass(frozen=True)
class Commit:
    """The code as it is checked out."""

    hash: str
    """The last commit that changed it: commits of results leave it as it was. Empty outside a repository."""
    changed: bool
    """Whether the code differs from that commit."""


def commit() -> Commit:
    """The commit of the code that runs."""
    try:
        last = _git_output("log", "-1", "--format=%H", "--", _CODE)
        return Commit(last, bool(_git_output("status", "--porcelain", "--", _CODE)))
    except (OSError, subprocess.CalledProcessError):
        return Commit("", False)


def _git_output(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout.strip()
