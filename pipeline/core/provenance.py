"""Where a run comes from: the commit of the source, the machine, and whether its process still lives."""

import hashlib
import socket
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

_CODE = "pipeline"


def alive(pid: str, started: float) -> bool:
    """Whether the process that began a run at ``started`` lives; a later process may have taken its number."""
    try:
        return pid.isdecimal() and psutil.Process(int(pid)).create_time() <= started + 1
    except psutil.NoSuchProcess:
        return False


def host() -> dict[str, str]:
    """Tags that tell where a run's process id means something.

    ``host.id`` is the boot of the kernel, the pid namespace and the name: containers of one name differ in it, and so
    do machines of one name. ``host.machine`` outlives a reboot; it is empty where the system has no such id.
    """
    name = socket.gethostname()
    boot, machine = _hashed("/proc/sys/kernel/random/boot_id"), _hashed("/etc/machine-id")
    try:
        namespace = str(Path("/proc/self/ns/pid").stat().st_ino)
    except OSError:
        namespace = ""
    return {"host": name, "host.id": "/".join((boot, namespace, name)), "host.machine": machine}


def gone(tags: Mapping[str, str], started: float, *, local: bool) -> bool:
    """Whether the process of a run has ended; False where that cannot be told from here.

    Args:
        tags: The run's tags, with those of `host` and ``pid``.
        started: When it began, in seconds since the epoch.
        local: Whether the runs are in a file, which one machine alone writes: those from before it booted have ended.
    """
    here = host()
    if tags.get("host.id") == here["host.id"]:
        return not alive(tags.get("pid", ""), started)
    same = here["host.machine"] and all(tags.get(name) == here[name] for name in ("host", "host.machine"))
    return bool(local and same and started < psutil.boot_time())


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


def _hashed(path: str) -> str:
    """A digest of a system file that holds an id, which is not to leave the machine; empty where it is not there."""
    try:
        return hashlib.sha256(b"sam-distillery" + Path(path).read_bytes().strip()).hexdigest()[:16]
    except OSError:
        return ""


def _git_output(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], check=True, capture_output=True, text=True).stdout.strip()
