"""Checks of what a command needs, made before it starts: directories, disk, git, dvc.lock, MLflow, Prefect, encoding.

Each failed check is an `InputError` that says in one line what is missing, where, and how to repair it. Nothing heavy
is imported, and no check takes longer than `services.TIMEOUT_S`.
"""

from pathlib import Path

from pipeline.core.preflight.machine import (
    check_checkout,
    check_encoding,
    check_free_disk,
    check_git,
    check_lock_file,
    check_writable,
)
from pipeline.core.preflight.services import check_database, check_prefect, check_tracking
from pipeline.core.stage import ARTIFACTS, DRAFTS

RELEASE_FREE_MIB, STAGE_FREE_MIB = 512, 64
"""Least free disk for a release, and for a single stage or command."""

__all__ = [
    "check_checkout", "check_database", "check_encoding", "check_free_disk", "check_git", "check_lock_file",
    "check_prefect", "check_registry", "check_release", "check_stage", "check_tracking", "check_writable",
]  # fmt: skip


def check_release() -> None:
    """Check everything that a release needs.

    Raises:
        InputError: Something is missing.
    """
    check_encoding()
    check_checkout()
    directories = (Path(), ARTIFACTS, DRAFTS, Path(".dvc"), Path(".dvc/tmp"), Path(".dvc/cache"))
    check_writable(directories)
    check_free_disk(directories, RELEASE_FREE_MIB)
    check_git()
    check_lock_file()
    check_tracking()
    check_prefect()


def check_stage() -> None:
    """Check what a single stage needs; params.yaml is checked by its reader.

    Raises:
        InputError: Something is missing.
    """
    check_encoding()
    directories = (Path(), ARTIFACTS, DRAFTS)
    check_writable(directories)
    check_free_disk(directories, STAGE_FREE_MIB)
    check_tracking()


def check_registry() -> None:
    """Check what commands on MLflow's registry need.

    Raises:
        InputError: Something is missing.
    """
    check_encoding()
    check_free_disk((Path(),), STAGE_FREE_MIB)
    check_tracking()
