"""Evaluations that several processes share, and that are killed: the figures are those of one that was left alone."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from pipeline.core.artifact import Card, Contents, digest
from pipeline.core.distributed import Ranks
from pipeline.core.log import silent
from pipeline.core.stage import ARTIFACTS
from pipeline.evaluate.images import Done
from pipeline.models import build
from pipeline.models.sam import save_checkpoint
from pipeline.prepare import PrepareConfig, prepare

ROOT = Path(__file__).parents[2]


def test_every_item_is_exactly_one_processes():
    items = list(range(11))
    for count in (1, 2, 3, 20):
        shares = [Ranks(rank, count).share(items) for rank in range(count)]
        assert sorted(item for share in shares for item in share) == items


def test_what_a_kill_cut_short_does_not_count_and_nothing_after_it_is_lost(tmp_path):
    first = Done(tmp_path)
    first.add("prompts/1", {"value": 0.1})
    with (tmp_path / "0.jsonl").open("a") as stream:
        stream.write('\n{"key": "prompts/2", "result": {"val')
    again = Done(tmp_path)
    assert again.results == {"prompts/1": {"value": 0.1}}
    again.add("prompts/3", {"value": 1 / 3})
    Done(tmp_path, rank=1).add("prompts/4", {})
    assert Done(tmp_path).results == {"prompts/1": {"value": 0.1}, "prompts/3": {"value": 1 / 3}, "prompts/4": {}}


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A place with a dataset of scenes and the bundled teacher, and params that time nothing."""
    root = tmp_path_factory.mktemp("world")
    source = {"kind": "procedural", "side_px": 128, "train": 1, "calibration": 1, "validation": 8, "seed": 5}
    for name in ("prepare", "teacher"):
        (root / ARTIFACTS / name).mkdir(parents=True)
    data, teacher = root / ARTIFACTS / "prepare", root / ARTIFACTS / "teacher"
    config = PrepareConfig(data=".", shard_images=64, source=source | {"jpeg_quality": 92})
    Card.seal(data, prepare(config, out=data, log=silent), {})
    save_checkpoint(build("bundled"), teacher)
    Card.seal(teacher, Contents(kind="checkpoint", model="bundled", precision="fp32"), {})
    params = yaml.safe_load((ROOT / "presets/demo_from_scratch.yaml").read_text())
    params["evaluate"]["latency"] |= {"runs": 0, "threads": 1}
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    return root


def _start(world, *launcher):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *launcher, "-m", "pipeline", "evaluate_teacher"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=world, env=environment, stdout=pipe, stderr=pipe, text=True)


def _finish(process):
    _, said = process.communicate(timeout=600)
    assert process.returncode == 0, said


@pytest.fixture(scope="module")
def alone(world):
    """The digest of an evaluation in one process that nobody disturbed."""
    _finish(_start(world))
    found = digest(world / ARTIFACTS / "evaluate_teacher")
    assert not list((world / ".checkpoints").glob("*"))
    return found


@pytest.mark.slow
def test_two_gloo_processes_give_the_figures_of_one_byte_for_byte(world, alone):
    _finish(_start(world, "-m", "torch.distributed.run", "--nproc-per-node", "2"))
    assert digest(world / ARTIFACTS / "evaluate_teacher") == alone
    assert not list((world / ".checkpoints").glob("*"))


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_and_gives_the_same_figures(world, alone):
    process, kept = _start(world), world / ".checkpoints"
    deadline = time.monotonic() + 300
    while not (lines := [line for p in kept.rglob("*.jsonl") for line in p.read_text().split()]):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert lines
    done = len(_results(kept))
    assert 0 < done < 8
    _finish(_start(world))
    assert digest(world / ARTIFACTS / "evaluate_teacher") == alone
    assert not list(kept.glob("*"))


def _results(kept):
    (directory,) = kept.glob("evaluate-*")
    return Done(directory).results


@pytest.mark.slow
def test_a_stage_that_is_not_shared_is_refused_in_several_processes(world):
    environment = os.environ | {"PYTHONPATH": str(ROOT), "WORLD_SIZE": "2", "RANK": "0"}
    command = [sys.executable, "-m", "pipeline", "prepare"]
    done = subprocess.run(command, cwd=world, env=environment, capture_output=True, text=True)
    assert done.returncode == 2
    assert "prepare runs in one process" in done.stderr
    assert json.loads((world / ARTIFACTS / "prepare" / "card.json").read_text())["kind"] == "dataset"
