"""Provenance of a run: source commit, machine, and whether its process is still alive."""

import hashlib
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

_CODE = "pipeline"


def alive(pid: str, started: float) -> bool:
    """Whether the process that started a run at ``started`` is alive, and not a later one with the same pid."""
    try:
        return pid.isdecimal() and psutil.Process(int(pid)).create_time() <= started + 1
    except psutil.NoSuchProcess:
        return False


def host() -> dict[str, str]:
    """Tags that identify where a run's process id is valid.

    ``host.id`` combines the kernel's boot id, the pid namespace and the host name, so it distinguishes containers and
    machines with the same name. ``host.machine`` survives a reboot; it is empty if the system has no such id.
    """
    name = socket.gethostname()
    boot, machine = _hashed("/proc/sys/kernel/random/boot_id"), _hashed("/etc/machine-id")
    try:
        namespace = str(Path("/proc/self/ns/pid").stat().st_ino)
    except OSError:
        namespace = ""
    return {"host": name, "host.id": "/".join((boot, namespace, name)), "host.machine": machine}


def gone(tags: Mapping[str, str], started: float, *, local: bool) -> bool:
    """Whether the process of a run has ended; False if this machine cannot know.

    Args:
        tags: The run's tags, with those of `host` and ``pid``.
        started: Start time, in seconds since the epoch.
        local: Whether runs are stored in a file that only one machine writes: runs from before its boot have ended.
    """
    current = host()
    if tags.get("host.id") == current["host.id"]:
        return not alive(tags.get("pid", ""), started)
    same = current["host.machine"] and all(tags.get(name) == current[name] for name in ("host", "host.machine"))
    return bool(local and same and started < psutil.boot_time())


def git() -> dict[str, str]:
    """Tags with the source commit and whether the working tree differs from it; empty outside a repository."""
    try:
        head = _git_output("rev-parse", "HEAD")
        dirty = _git_output("status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.CalledProcessError):
        return {}
    return {"mlflow.source.git.commit": head, "git.commit": head, "git.dirty": str(bool(dirty)).lower()}


@dataclass(frozen=True)
class Commit:
    """The checked-out version of the code."""

    hash: str
    """The last commit that changed the code, so that commits of results do not count. Empty outside a repository."""
    changed: bool
    """Whether the code differs from that commit."""


def commit() -> Commit:
    """The commit of the running code."""
    try:
        last = _git_output("log", "-1", "--format=%H", "--", _CODE)
        return Commit(last, bool(_git_output("status", "--porcelain", "--", _CODE)))
    except (OSError, subprocess.CalledProcessError):
        return Commit("", False)


def _hashed(path: str) -> str:
    """Digest of a system file with an id that must not leave the machine; empty if it does not exist."""
    try:
        return hashlib.sha256(b"sam-distillery" + Path(path).read_bytes().strip()).hexdigest()[:16]
    except OSError:
        return ""


def _git_output(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout.strip()
