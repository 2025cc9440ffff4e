"""Checkouts with a small release, and what an undisturbed one leaves."""

import random
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import yaml

from tests.chaos.processes import Command
from tests.chaos.soundness import Progress, Result, faults, unfinished
from tests.conftest import make_world
from tests.end_to_end.small_release import clone, tiny

RELEASES = (("dvc", "repro"), ("flows.release",))
"""The commands that make a release."""


class DamageError(Exception):
    """Something is broken or lost after a disturbance."""


def small(params):
    """The end-to-end tests' release, with several files of embeddings and several checkpoints."""
    params = tiny(params)
    params["prepare"]["shard_images"] = 4
    for stage in ("distill", "align"):
        params[stage]["efficientvit_sam_nano"]["optimizer"] |= {"steps": 8, "checkpoint_every": 2}
    # A student that learned nothing is promoted as well.
    params["promote"] |= {"champion": None, "max_precision_drop": None}
    params["promote"] |= {"min_box_miou_retained": 0.0, "min_click_miou_retained": 0.0, "allow_below_trivial": True}
    params["promote"] |= {"champion": None, "max_precision_drop": None}  # few images show no difference
    return params


def real(root: Path) -> None:
    """Make a checkout of the real pipeline with little data."""
    clone(root, small)


def stand_in(root: Path) -> None:
    """Make a checkout of the stand-in pipeline: five stages in the real frame, each of which writes a few bytes."""
    make_world(root)


@dataclass(frozen=True)
class Reference:
    """An undisturbed release."""

    root: Path
    result: Result
    seconds: float
    new: Callable[[Path], object]

    @classmethod
    def make(cls, directory: Path, new: Callable[[Path], object]) -> "Reference":
        """Run the release without disturbance, unless ``directory`` has one.

        Args:
            directory: Where all checkouts are made.
            new: Makes a checkout in which nothing has run: `real` or `stand_in`.
        """
        root, done = directory / "reference", directory / "seconds"
        if not done.exists():
            remove(root)
            new(root)
            start = time.monotonic()
            finish(root, RELEASES[0])
            done.write_text(str(time.monotonic() - start))
        return cls(root, Result.of(root), float(done.read_text()), new)

    def fresh(self, name: str) -> Path:
        """A checkout in which nothing has run."""
        root = self.root.parent / name
        self.new(root)
        return root

    def copy(self, name: str) -> Path:
        """A copy in which everything has run."""
        ignored = shutil.ignore_patterns("runs", "tmp", "__pycache__", ".prefect")
        return shutil.copytree(self.root, self.root.parent / name, symlinks=True, ignore=ignored)

    def forgetful(self, name: str, generator: random.Random, stages: int) -> Path:
        """A copy in which the comparison and ``stages`` stages of the second half have to run again."""
        root = self.copy(name)
        lock = yaml.safe_load((root / "dvc.lock").read_text())
        targets = [target for target in lock["stages"] if target != "compare"]
        last = targets[len(targets) // 2 :]
        for target in ["compare", *generator.sample(last, min(stages, len(last)))]:
            for out in lock["stages"].pop(target)["outs"]:
                shutil.rmtree(root / out["path"])
        (root / "dvc.lock").write_text(yaml.safe_dump(lock, sort_keys=False))
        return root

    def check(self, root: Path) -> None:
        """Check a finished release against this one.

        Raises:
            DamageError: The results differ, or MLflow lacks a run.
        """
        found = self.result.differences(root) + unfinished(root, set(self.result.lock))
        if found:
            raise DamageError("after the rerun: " + "; ".join(found[:5]))


def finish(root: Path, arguments: tuple[str, ...], **environment: str) -> None:
    """Run a command that must succeed.

    Raises:
        DamageError: It has failed.
        HangError: It did not end.
    """
    command = Command(root, arguments, **environment)
    if code := command.wait():
        raise DamageError(f"the rerun ended with {code}: {command.output()[-1500:]}")


def check_sound(root: Path, before: Progress | None = None) -> Progress:
    """Check a disturbed checkout; returns its progress.

    Args:
        root: The checkout.
        before: Its progress at an earlier time, none of which may be lost.

    Raises:
        DamageError: A file is broken, or work is lost.
    """
    if found := faults(root):
        raise DamageError("; ".join(found[:5]))
    progress = Progress.of(root)
    if before is not None and (lost := before.losses(progress)):
        raise DamageError("work is lost: " + "; ".join(lost[:5]))
    return progress


def remove(root: Path) -> None:
    """Delete a checkout that is no longer needed."""
    shutil.rmtree(root, ignore_errors=True)
