"""Clones of the repository in which the real pipeline runs on little data."""

import shutil

import pytest

from tests.end_to_end.small_release import clone


@pytest.fixture(scope="session")
def new_clone(world_at, tmp_path_factory):
    """Make one more clean clone."""
    return lambda name: world_at(clone(tmp_path_factory.mktemp(name) / "clone"))


@pytest.fixture(scope="session")
def released(made_once, world_at, tmp_path_factory):
    """A clone in which `dvc repro` has run every stage."""

    def make(root):
        done = world_at(clone(root)).dvc("repro")
        assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]

    root = tmp_path_factory.mktemp("released") / "clone"
    return world_at(shutil.copytree(made_once("released", make), root, symlinks=True))
