"""The command that people type: killed, shared by two processes, and with a recipe that diverges."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import torch
import yaml
from safetensors.torch import load_file

from pipeline.core.artifact import Card, Contents, digest
from pipeline.core.log import silent
from pipeline.core.stage import ARTIFACTS
from pipeline.embed import EmbedConfig, embed
from pipeline.models import build
from pipeline.models.sam import save_checkpoint
from pipeline.prepare import PrepareConfig, prepare

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
STUDENT = "efficientvit_sam_nano"
TWO = ("-m", "torch.distributed.run", "--nproc-per-node", "2")
OPTIMIZER = {
    "steps": 30, "lr": 0.001, "schedule": "cosine", "warmup_steps": 5, "cooldown_steps": 0, "weight_decay": 0.01,
    "clip_norm": 1.0, "ema_decay": 0.5, "accumulate": 1, "autocast": "none", "compile": False, "checkpoint_every": 3,
    "seed": 0,
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A place with scenes, the bundled teacher and its embeddings."""
    root = tmp_path_factory.mktemp("world")
    places = {name: root / ARTIFACTS / name for name in ("prepare", "teacher", "embed")}
    for place in places.values():
        place.mkdir(parents=True)
    source = {"kind": "procedural", "side_px": 128, "train": 12, "calibration": 3, "validation": 1, "seed": 5}
    config = PrepareConfig(data=".", shard_images=64, source=source | {"jpeg_quality": 92})
    Card.seal(places["prepare"], prepare(config, out=places["prepare"], log=silent), {})
    save_checkpoint(build("bundled"), places["teacher"])
    Card.seal(places["teacher"], Contents(kind="checkpoint", model="bundled", precision="fp32"), {})
    stored = EmbedConfig(store=str(root / "store"), batch=4, device="cpu", feature_layers=[])
    inputs = {name: places[name] for name in ("prepare", "teacher")}
    Card.seal(places["embed"], embed(stored, **inputs, out=places["embed"], log=silent), {})
    return root


def start(root, *launcher, stage="distill", **changes):
    params = yaml.safe_load((ROOT / "presets/demo_from_scratch.yaml").read_text())
    section = params[stage][STUDENT]
    section["batch"] = changes.pop("batch", 4)
    section["optimizer"] = OPTIMIZER | changes
    (root / "params.yaml").write_text(yaml.safe_dump(params))
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    command = [sys.executable, *launcher, "-m", "pipeline", stage, "--student", STUDENT]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, cwd=root, env=environment, stdout=pipe, stderr=pipe, text=True)


def finish(process, code=0):
    _, said = process.communicate(timeout=600)
    assert process.returncode == code, said
    return said


def kept(root):
    return sorted(path.name for path in (root / ".checkpoints").glob("*"))


def result(root, stage="distill"):
    return root / ARTIFACTS / stage / STUDENT


@pytest.fixture(scope="module")
def alone(root):
    """What a run in one process that nobody disturbed made."""
    finish(start(root))
    assert kept(root) == []
    return digest(result(root)), load_file(result(root) / "model.safetensors"), read_metrics(root)


def read_metrics(root, stage="distill"):
    return json.loads((result(root, stage) / "metrics.json").read_text())


def kill_in_the_middle(root, process):
    deadline = time.monotonic() + 300
    while not any(name.endswith(".pt") for name in kept(root)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_a_killed_run_goes_on_and_makes_the_same_artifact_to_the_bit(root, alone):
    kill_in_the_middle(root, start(root))
    (checkpoint,) = (root / ".checkpoints").glob("*.pt")
    assert 0 < torch.load(checkpoint)["done"] < OPTIMIZER["steps"]
    said = finish(start(root))
    assert "from scratch" not in said
    assert digest(result(root)) == alone[0]
    assert kept(root) == []


def test_a_killed_run_with_changed_parameters_starts_anew_and_says_so(root, alone):
    kill_in_the_middle(root, start(root))
    (checkpoint,) = kept(root)
    said = finish(start(root, steps=2))
    assert f"distill-{STUDENT} starts from scratch: the checkpoint of an interrupted run with other parameters" in said
    assert checkpoint in said
    assert kept(root) == [checkpoint]
    finish(start(root))  # what it was started with goes on
    assert digest(result(root)) == alone[0]
    assert kept(root) == []


@pytest.mark.parametrize(("batch", "accumulate"), [(4, 1), (5, 1), (4, 2)])
def test_two_processes_learn_what_one_does(root, batch, accumulate):
    few = {"steps": 4, "batch": batch, "checkpoint_every": 2}
    finish(start(root, **few))
    one, metrics = load_file(result(root) / "model.safetensors"), read_metrics(root)
    finish(start(root, *TWO, accumulate=accumulate, **few))
    assert kept(root) == []
    two = load_file(result(root) / "model.safetensors")
    if accumulate == 1:  # in parts, a batch norm sees other batches
        # AdamW divides by a gradient's size: where that is all rounding, so is the first step.
        apart = torch.stack([(one[key] - two[key]).float().norm() for key in one]).norm()
        assert apart < 2e-3 * torch.stack([one[key].float().norm() for key in one]).norm()
        assert read_metrics(root) == pytest.approx(metrics, rel=1e-3)


def test_more_processes_than_samples_are_refused(root):
    said = finish(start(root, *TWO, batch=1), code=1)  # what torchrun gives
    assert "error: a batch of 1 cannot be cut into 2 parts (2 processes, accumulate 1): raise batch, or" in said


def test_two_processes_align_a_decoder(root, alone):
    metrics = []
    for launcher in ((), TWO):
        finish(start(root, *launcher, stage="align", steps=4, lr=1e-4))
        metrics.append(read_metrics(root, "align"))
    assert metrics[1] == pytest.approx(metrics[0], rel=1e-3)


def test_a_run_that_diverges_stops_at_the_step_and_names_term_and_last_good_state(root):
    said = finish(start(root, lr=1e20, clip_norm=1e30, warmup_steps=12, checkpoint_every=1), code=2)
    (checkpoint,) = kept(root)
    state = f"the last good state, after 1 steps, is in .checkpoints/{checkpoint}"
    assert f"error: step 1: loss, gradient are not finite; {state}. Lower optimizer.lr" in said
    assert "Traceback" not in said


def workers(launcher):
    """The two processes of ``torchrun``, by rank, once both have joined the training."""
    deadline = time.monotonic() + 300
    while True:
        assert launcher.poll() is None, launcher.communicate()
        assert time.monotonic() < deadline
        children = {child.environ().get("RANK"): child for child in psutil.Process(launcher.pid).children()}
        if {"0", "1"} <= set(children):
            return children
        time.sleep(0.05)


@pytest.fixture(scope="module")
def shared(root):
    """The digest of what two undisturbed processes made."""
    finish(start(root, *TWO))
    return digest(result(root))


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_one_of_two_that_is_ended_ends_both_and_the_run_resumes_to_the_bit(root, shared, rank, number):
    shutil.rmtree(result(root))
    launcher = start(root, *TWO)
    try:
        children = workers(launcher)
        while not any(name.endswith(".pt") for name in kept(root)):
            assert launcher.poll() is None
            time.sleep(0.005)
        children[str(rank)].send_signal(number)
        _, alive = psutil.wait_procs(children.values(), timeout=30)
        assert not alive
        assert launcher.wait(timeout=30) != 0
    finally:
        launcher.kill()
    launcher.communicate()
    assert not result(root).exists()
    if number == signal.SIGTERM:  # what is killed cleans up nothing, and its draft is removed by the next run
        assert not [path for path in (root / ARTIFACTS / ".drafts").iterdir() if path.is_dir()]
    (checkpoint,) = (root / ".checkpoints").glob("*.pt")
    assert 0 < torch.load(checkpoint)["done"] < OPTIMIZER["steps"]
    finish(start(root, *TWO))
    assert digest(result(root)) == shared
    assert kept(root) == []
