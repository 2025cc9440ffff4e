"""What a person meets at the command line when something is wrong: one line, a code, and the earlier result."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
import yaml
from PIL import Image

from pipeline.__main__ import main
from pipeline.core import process
from pipeline.core.artifact import Card, digest, file_sha256
from pipeline.core.stage import DRAFTS
from pipeline.stages import STAGES

KEYS = {"student": "efficientvit_sam_nano", "precision": "int8"}
NAMES = [stage.name for stage in STAGES]
some_by_default = pytest.mark.parametrize(
    "name",
    [n if n in ("prepare", "embed", "distill", "compare") else pytest.param(n, marks=pytest.mark.slow) for n in NAMES],
)
"""Each takes a process of its own; the other stages take the same path, and have their turn in `make test-slow`."""


@pytest.fixture(scope="module")
def workplace(released, tmp_path_factory):
    """A copy of a finished pipeline that the tests of this module share: nothing they do may change a result."""
    root = tmp_path_factory.mktemp("workplace") / "clone"
    return shutil.copytree(released.root, root, ignore=shutil.ignore_patterns(".dvc", ".git"))


@pytest.fixture(autouse=True)
def place(workplace, monkeypatch):
    """Work there; params.yaml and the process are put back as they were."""
    monkeypatch.chdir(workplace)
    monkeypatch.delenv("DVC_STAGE", raising=False)
    monkeypatch.setattr(process, "die_with_parent", lambda: None)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    params = workplace / "params.yaml"  # whole, since a test may go elsewhere
    before = params.read_text()
    yield workplace
    params.write_text(before)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def stage_of(name):
    return next(stage for stage in STAGES if stage.name == name)


def arguments(stage):
    return [stage.name, *(word for key in stage.matrix for word in (f"--{key}", KEYS[key]))]


def refused(stage, capfd, code, *says):
    """Run a stage that must not end well, and prove what every refusal keeps to."""
    out = stage.path(KEYS)
    earlier = Card.read(out)
    capfd.readouterr()
    assert main(arguments(stage)) == code
    stderr = capfd.readouterr().err
    lines = [line for line in stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, stderr
    assert "Traceback" not in stderr
    for text in says:
        assert text in lines[0]
    assert Card.read(out) == earlier
    assert digest(out) == earlier.digest
    assert [path.name for path in DRAFTS.iterdir() if path.suffix != ".lock"] == []
    return lines[0]


def settings(section, **changes):
    params = yaml.safe_load(Path("params.yaml").read_text())
    params[section] |= changes
    Path("params.yaml").write_text(yaml.safe_dump(params))


@pytest.fixture
def photographs(tmp_path):
    """Six photographs with a json, and params that ask for them."""
    root = tmp_path / "mine"
    (root / "images").mkdir(parents=True)
    for i in range(1, 7):
        pixels = np.random.default_rng(i).integers(0, 255, (20, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(root / "images" / f"{i}.jpg")
    square = [2.0, 2.0, 12.0, 2.0, 12.0, 12.0, 2.0, 12.0]
    content = {
        "images": [{"id": i, "file_name": f"{i}.jpg", "height": 20, "width": 30} for i in range(1, 7)],
        "annotations": [
            {"id": 10 + i, "image_id": i, "category_id": 1, "segmentation": [square], "iscrowd": 0} for i in range(1, 7)
        ],
        "categories": [{"id": 1, "name": "square"}],
    }
    (root / "instances.json").write_text(json.dumps(content))
    source = {"kind": "coco", "annotations": "instances.json", "images": "images", "seed": 0, "min_area_px": 1}
    source |= {"calibration_images": 1, "validation_images": 1, "jpeg_quality": 90}
    settings("prepare", data=str(root), source=source)
    return root


def truncate(root):
    path = root / "images/2.jpg"
    path.write_bytes(path.read_bytes()[:-200])


def segment(segmentation):
    def spoil(root):
        content = json.loads((root / "instances.json").read_text())
        content["annotations"][1]["segmentation"] = segmentation
        (root / "instances.json").write_text(json.dumps(content))

    return spoil


BAD_IMAGES = {
    "missing image": (lambda root: (root / "images/2.jpg").unlink(), ("images/2.jpg cannot be read",)),
    "truncated image": (truncate, ("images/2.jpg is damaged",)),
    "rle of another size": (
        segment({"size": [9, 9], "counts": [81]}),
        ("instances.json: annotation 12 of image 2", "9", "Correct or remove it"),
    ),
    "rle that is too short": (
        segment({"size": [20, 30], "counts": [5, 5]}),
        ("instances.json: annotation 12 of image 2", "Correct or remove it"),
    ),
    "rle of wrong characters": (
        segment({"size": [20, 30], "counts": "\u0001\u0002"}),
        ("instances.json: annotation 12 of image 2", "Correct or remove it"),
    ),
    "polygon of two points": (
        segment([[1.0, 2.0, 3.0, 4.0]]),
        ("instances.json: annotation 12 of image 2", "polygon", "Correct or remove it"),
    ),
    "polygon far outside": (
        segment([[0.0, 0.0, 1e9, 0.0, 1e9, 1e9]]),
        ("instances.json: annotation 12 of image 2", "in or near its image of 20 x 30", "Correct or remove it"),
    ),
    "polygon of words": (
        segment([["a", "b", "c", "d", "e", "f"]]),
        ("instances.json: annotation 12 of image 2", "Correct or remove it"),
    ),
}


@pytest.mark.parametrize("case", BAD_IMAGES)
def test_bad_images_and_masks(photographs, capfd, case):
    spoil, says = BAD_IMAGES[case]
    spoil(photographs)
    refused(stage_of("prepare"), capfd, 2, *says)


def test_the_same_photographs_unspoiled_are_taken(photographs, tmp_path, monkeypatch):
    shutil.copy("params.yaml", tmp_path)
    shutil.copy("mlflow.db", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert main(["prepare"]) == 0


class Trap:
    def __reduce__(self):
        return Path.touch, (Path("ran"),)


BAD_CHECKPOINTS = {
    "missing": (lambda path: None, {}, ("sam.pth does not exist", "correct `teacher.checkpoint`")),
    "wrong hash": (
        lambda path: torch.save({"a": torch.zeros(1)}, path),
        {"sha256": "0" * 64},
        ("sam.pth has sha256", "get the right file"),
    ),
    "wrong keys": (
        lambda path: torch.save({"a": torch.zeros(1)}, path),
        {},
        ("sam.pth does not hold the weights of this model", "1 unknown (first: a)"),
    ),
    "truncated": (lambda path: path.write_bytes(b"PK\x03\x04" + bytes(90)), {}, ("sam.pth", "get the official file")),
    "code": (lambda path: path.write_bytes(pickle.dumps({"a": Trap()})), {}, ("sam.pth", "get the official file")),
}


@pytest.mark.parametrize("case", BAD_CHECKPOINTS)
def test_bad_checkpoints(tmp_path, capfd, case):
    spoil, changes, says = BAD_CHECKPOINTS[case]
    path = tmp_path / "sam.pth"
    spoil(path)
    pinned = file_sha256(path) if path.exists() else "0" * 64
    settings("teacher", **{"name": "vit_b", "checkpoint": str(path), "sha256": pinned} | changes)
    refused(stage_of("teacher"), capfd, 2, *says)
    assert not Path("ran").exists()


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_key_of_any_section(capfd, name):
    stage = stage_of(name)
    section, _, student = stage.section.format(**KEYS).partition(".") if stage.section else (name, "", "")
    params = yaml.safe_load(Path("params.yaml").read_text())
    (params[section][student] if student else params[section])["colour"] = "blue"
    Path("params.yaml").write_text(yaml.safe_dump(params))
    refused(stage, capfd, 2, "params.yaml, section", "unknown key 'colour': remove it or correct its spelling")


INTERRUPTED = """
import os, signal, sys
from pipeline.__main__ import main
from pipeline.tracking import Curves

def interrupt(self, metrics, step=None):
    os.kill(os.getpid(), signal.SIGINT)

Curves.__call__ = interrupt
sys.exit(main(sys.argv[1:]))
"""

CRAMPED = """
import inspect, resource, sys
from pipeline import tracking
from pipeline.__main__ import main
from pipeline.stages import STAGES
from pipeline.core.stage import Stage

verb = next(stage for stage in STAGES if stage.name == sys.argv[1]).function
limit = resource.getrlimit(resource.RLIMIT_FSIZE)

def cramped(*given, **named):
    resource.setrlimit(resource.RLIMIT_FSIZE, (1024, limit[1]))
    try:
        return verb(*given, **named)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)

cramped.__signature__ = inspect.signature(verb)
function = Stage.function.fget
Stage.function = property(lambda self: cramped if self.name == sys.argv[1] else function(self))
tracking.FLUSH_EVERY_S = 1e9  # what waits for MLflow is sent when there is room again
sys.exit(main(sys.argv[1:]))
"""


def refused_alone(released, code, stage):
    """Run a stage that must not end well in a process of its own, as people do; gives exit code and error line."""
    out = stage.path(KEYS)
    earlier = Card.read(out)
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments(stage)],
        env=released.environment | {"PYTHONPATH": "."},
        capture_output=True,
        text=True,
        timeout=300,
    )
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert Card.read(out) == earlier
    assert digest(out) == earlier.digest
    assert [path.name for path in DRAFTS.iterdir() if path.suffix != ".lock"] == []
    return done.returncode, lines[0]


@some_by_default
def test_ctrl_c_in_any_stage(released, name):
    stage = stage_of(name)
    assert refused_alone(released, INTERRUPTED, stage) == (130, f"error: {stage.target(KEYS)} was stopped.")


@some_by_default
def test_a_full_disk_in_any_stage(released, name):
    """The system itself refuses to write: a file may grow to one KiB while the stage works, and no further."""
    store = Path(".store/embeddings")
    if name == "embed":
        shutil.move(store, "aside")
    code, line = refused_alone(released, CRAMPED, stage_of(name))
    if name == "embed":
        shutil.rmtree(store)
        shutil.move("aside", store)
    assert code == 2
    assert ": no space left on the device. Free some" in line or "free space, or set" in line


@pytest.mark.parametrize("name", ["prepare", "distill"])
def test_ctrl_c_from_a_terminal_ends_a_stage_with_all_its_processes(released, place, name):
    """The signal goes to the whole group, as a terminal sends it."""
    params = yaml.safe_load(Path("params.yaml").read_text())
    params["prepare"]["source"]["train"] = 4000  # so many that worker processes render them
    params["distill"][KEYS["student"]]["optimizer"]["steps"] = 4000
    Path("params.yaml").write_text(yaml.safe_dump(params))
    stage = stage_of(name)
    earlier = Card.read(stage.path(KEYS))
    running = subprocess.Popen(
        [sys.executable, "-m", "pipeline", *arguments(stage)],
        env=released.environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    draft = DRAFTS / stage.target(KEYS)
    until = time.monotonic() + 120
    while not draft.exists() or (name == "prepare" and not list(draft.rglob("*.tar"))):
        assert running.poll() is None, running.stderr.read()
        assert time.monotonic() < until
        time.sleep(0.05)
    children = psutil.Process(running.pid).children(recursive=True)
    assert bool(children) == (name == "prepare")
    os.killpg(running.pid, signal.SIGINT)
    _, stderr = running.communicate(timeout=60)
    assert running.returncode == 130, stderr
    assert stderr.splitlines()[-1] == f"error: {stage.target(KEYS)} was stopped."
    assert "Traceback" not in stderr
    assert not psutil.wait_procs(children, timeout=10)[1]
    assert Card.read(stage.path(KEYS)) == earlier
    assert not draft.exists()
