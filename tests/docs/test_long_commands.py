"""The long commands of README and tutorial, in a clone: demo, change, rerun, registry, engine."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, blocks

pytestmark = pytest.mark.slow
ENGINE = "artifacts/build_engine/efficientvit_sam_nano/int8"


@pytest.fixture(scope="module")
def demonstrated(tmp_path_factory):
    """A clone of the last commit after `make demo-smallest`, which shares the environment of the tests."""
    clone = tmp_path_factory.mktemp("demo") / "clone"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
    (clone / ".venv").symlink_to(sys.prefix)
    typed(clone, "make --assume-old=.venv/.ready demo-smallest")
    return clone


def typed(clone: Path, line: str) -> str:
    """What a command prints that a person types in the clone; it has to end with 0."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    environment = {**os.environ, "PATH": path, "PYTHONPATH": ""}
    done = subprocess.run(shlex.split(line), cwd=clone, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{line}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout + done.stderr


def test_the_demo_leaves_a_report(demonstrated):
    assert (demonstrated / "artifacts/compare/report.html").is_file()


def test_a_change_is_repeated_and_a_second_repro_does_nothing(demonstrated):
    params = (demonstrated / "params.yaml").read_text()
    assert "checkpoint_every: 40" in params
    (demonstrated / "params.yaml").write_text(params.replace("latency: {warmup: 3, runs: 8}", "latency: {runs: 4}"))
    assert "evaluate@efficientvit_sam_nano-int8" in typed(demonstrated, "dvc status")
    printed = typed(demonstrated, "dvc repro")
    assert "Running stage 'evaluate@efficientvit_sam_nano-int8'" in printed
    assert "Running stage 'distill" not in printed
    assert "Running stage" not in typed(demonstrated, "dvc repro")


def test_the_registry_and_the_engine_can_be_used_as_shown(demonstrated):
    typed(demonstrated, "python -m pipeline register")
    typed(demonstrated, f"python -m pipeline verify {ENGINE}")
    snippets = [block.body for block in blocks() if block.language == "python" and block.page.endswith("promote.md")]
    assert ["mlflow" in body for body in snippets] == [True, False]
    for body in snippets:
        code = body.replace("artifacts/build_engine/tinysam_nano/int8", ENGINE)
        typed(demonstrated, shlex.join(["python", "-c", code]))
