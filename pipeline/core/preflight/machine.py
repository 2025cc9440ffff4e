"""Checks of this machine: locale, current directory, permissions, disk, git, dvc.lock."""

import locale
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterable
from pathlib import Path

import yaml

from pipeline.core.checkout import checkout_above
from pipeline.core.dvc_files import repair_lock
from pipeline.core.errors import InputError
from pipeline.core.stage import DVC_LOCK

FREE_MIB = "SAM_DISTILLERY_FREE_MIB"
"""Environment variable that replaces the minimum of free disk."""
_LARGEST_LOCK = 1 << 26


def check_encoding() -> None:
    """Check that files, arguments and the terminal use UTF-8.

    Raises:
        InputError: The locale has another encoding.
    """
    encoding = locale.getpreferredencoding(False)
    if encoding.replace("-", "").lower() not in ("utf8", "cputf8"):
        raise InputError(f"the locale's encoding is {encoding}, not UTF-8: set LC_ALL=C.UTF-8 or PYTHONUTF8=1.")


def check_checkout() -> None:
    """Check that the current directory is a checkout with dvc.yaml.

    Raises:
        InputError: It is a subdirectory of one, or no checkout.
    """
    if Path("dvc.yaml").exists():
        return
    checkout = checkout_above()
    remedy = f"change to the checkout, `cd {checkout}`" if checkout else "change to a checkout of the repository"
    raise InputError(f"dvc.yaml does not exist in {Path.cwd()}: {remedy}.")


def check_writable(directories: Iterable[Path]) -> None:
    """Check that files can be created in those of ``directories`` that exist, and in the system's temporary directory.

    Raises:
        InputError: One cannot be written.
    """
    for directory in filter(Path.exists, directories):
        try:
            tempfile.TemporaryFile(dir=directory).close()
        except OSError as error:
            raise InputError(
                f"{directory.absolute()} cannot be written ({error.strerror}): change its permissions, "
                "or work in another checkout."
            ) from None
    try:
        tempfile.gettempdir()
    except OSError:
        raise InputError(
            "no directory for temporary files can be written, /tmp included: free space there or set TMPDIR."
        ) from None


def check_free_disk(directories: Iterable[Path], minimum_mib: int) -> None:
    """Check the free space of the disks that ``directories`` are on.

    Args:
        directories: Those that do not exist are skipped.
        minimum_mib: Least free space; the environment variable `FREE_MIB` replaces it.

    Raises:
        InputError: A disk has less.
    """
    text = os.environ.get(FREE_MIB) or str(minimum_mib)
    if not text.isdecimal():
        raise InputError(f"{FREE_MIB} must be a whole number of MiB, not {text!r}.")
    for directory in filter(Path.exists, directories):
        free = shutil.disk_usage(directory).free >> 20
        if free < int(text):
            raise InputError(
                f"{directory.absolute()} has {free} MiB of free disk space, at least {text} MiB are needed: free some "
                f"(`dvc gc --workspace` empties DVC's cache), or lower the limit with {FREE_MIB}."
            )


def check_git() -> None:
    """Check that git is installed and the current directory is in a repository; DVC needs both.

    Raises:
        InputError: One is missing, or git refuses the repository.
    """
    if _without_scm():
        return
    if shutil.which("git") is None:
        raise InputError("git is not installed or not on PATH: install it, or add it to PATH.")
    done = subprocess.run(["git", "rev-parse", "--is-inside-work-tree"], capture_output=True, text=True)
    if done.returncode:
        reason = next(iter(done.stderr.strip().splitlines()), "unknown reason").removeprefix("fatal: ")
        raise InputError(
            f"{Path.cwd()} cannot be used as a git repository ({reason}): clone it again or run `git init`."
        )


def _without_scm() -> bool:
    """Whether DVC is configured to work without git."""
    files = filter(Path.is_file, (Path(".dvc/config"), Path(".dvc/config.local")))
    return any(re.search(r"^\s*no_scm\s*=\s*true", file.read_text(errors="replace"), re.M | re.I) for file in files)


def check_lock_file() -> None:
    """Check that dvc.lock, if there is one, can be parsed. One that a killed process left incomplete is repaired.

    Raises:
        InputError: It cannot.
    """
    if not DVC_LOCK.exists():
        return
    remedy = f"restore it with `git checkout {DVC_LOCK}`, or delete it to run every stage again."
    if not DVC_LOCK.is_file():
        raise InputError(f"{DVC_LOCK.absolute()} is not a file: {remedy}")
    if DVC_LOCK.stat().st_size > _LARGEST_LOCK:
        raise InputError(f"{DVC_LOCK.absolute()} is larger than {_LARGEST_LOCK >> 20} MiB: {remedy}")
    repair_lock()
    try:
        content = yaml.load(DVC_LOCK.read_bytes(), getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        where = f", line {error.problem_mark.line + 1}" if getattr(error, "problem_mark", None) else ""  # type: ignore[union-attr]
        raise InputError(f"{DVC_LOCK.absolute()} is not valid YAML{where}: {remedy}") from None
    stages = content.get("stages", {}) if isinstance(content, dict) else content
    if content is not None and not (isinstance(stages, dict) and all(isinstance(e, dict) for e in stages.values())):
        raise InputError(f"{DVC_LOCK.absolute()} does not hold a mapping of stages: {remedy}")
