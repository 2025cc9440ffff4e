"""A clone of the repository with params so small that all stages together take a minute or two."""

import os
import shutil
import subprocess
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
STUDENT = "efficientvit_sam_nano"
_SAME_COMMIT = dict.fromkeys(("GIT_AUTHOR_DATE", "GIT_COMMITTER_DATE"), "2026-01-01T00:00:00Z")
"""Clones of one repository have the same commit, which the report names."""


def tiny(params):
    """The demo with one student, little data, few steps, and no clock in its results."""
    params["students"] = [STUDENT]
    source = {"side_px": 96, "train": 12, "calibration": 4, "validation": 4}
    params["prepare"]["source"] |= source
    for stage, steps in (("distill", 6), ("align", 4)):
        recipe = params[stage][STUDENT]
        recipe["batch"] = 4
        recipe["optimizer"] |= {"steps": steps, "warmup_steps": 2, "cooldown_steps": 2}
    params["embed"]["batch"] = 4
    # A student that learned nothing may come out of int8 as it likes.
    params["quantize"] |= {"calibration_images": 2, "holdout_images": 2, "min_cosine": 0.0, "sensitivity_images": 1}
    params["build_engine"] |= {"min_cosine": 0.0, "min_mask_agreement": 0.0, "threads": 1}
    params["evaluate"] |= {"pictures": 2}
    params["evaluate"]["everything"] |= {"images": 1, "pictures": 1, "points_per_side": 4}
    params["evaluate"]["latency"] |= {"warmup": 0, "runs": 0, "threads": 1}
    params["compare"] |= {"pictures": 2, "extremes": 1}
    return params


def clone(root, params=tiny):
    """What a clean clone has, with params of our own, under git and DVC."""
    root.mkdir(parents=True)
    for name in ("pipeline", "flows", "presets", "deps"):
        shutil.copytree(ROOT / name, root / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", ".gitignore", ".dvcignore"):
        shutil.copy(ROOT / name, root)
    shutil.copytree(ROOT / ".dvc", root / ".dvc", ignore=shutil.ignore_patterns("tmp", "cache", "config.local"))
    demo = yaml.safe_load((ROOT / "presets/demo_from_scratch.yaml").read_text())
    (root / "params.yaml").write_text(yaml.safe_dump(params(demo), sort_keys=False))
    for arguments in (["init", "--quiet"], ["add", "--all"], ["commit", "--quiet", "--message", "start"]):
        identity = ["-c", "user.name=A Person", "-c", "user.email=person@example.org"]
        subprocess.run(["git", *identity, *arguments], cwd=root, check=True, env=os.environ | _SAME_COMMIT)
    return root
