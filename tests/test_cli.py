import os
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pipeline.__main__ import main
from pipeline.cli import app
from pipeline.core import log_files
from pipeline.core.failures import from_system
from pipeline.stages import STAGES

ROOT = Path(__file__).parents[1]
HEAVY = {"torch", "mlflow", "prefect", "dvc", "openvino", "onnxruntime", "numpy", "matplotlib"}


@pytest.mark.parametrize("arguments", [["--help"], ["distill", "--help"], ["dvc"]])
def test_help_is_there_at_once_and_imports_nothing_heavy(arguments):
    began = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "pipeline", *arguments], cwd=ROOT, capture_output=True, text=True
    )
    # Processor time: a busy machine does not make it more.
    assert resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime - began < 1
    assert done.returncode == 0
    imported = {m.group(1) for m in re.finditer(r"\|\s+(\w+)$", done.stderr, re.MULTILINE)}
    assert "yaml" in imported
    assert not imported & HEAVY


def test_help_names_every_verb():
    done = subprocess.run([sys.executable, "-m", "pipeline", "--help"], cwd=ROOT, capture_output=True, text=True)
    commands = {command.name for command in app.registered_commands} | {group.name for group in app.registered_groups}
    assert {stage.name for stage in STAGES} < commands
    assert all(re.search(rf"^  {command}  ", done.stdout, re.MULTILINE) for command in commands)


@pytest.mark.parametrize(
    ("error", "says"),
    [
        (OSError(28, "No space left on device", "model.onnx"), "model.onnx: no space left on the device. Free some"),
        (RuntimeError("I/O error: No space left on device (os error 28)"), "no space left on the device"),
        (
            MemoryError("Unable to allocate 4 GiB"),
            "memory ran out. Lower batch, masks, prompts or calibration_images in the stage's section",
        ),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 8 bytes"), "memory ran out"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 4 GiB"), "optimizer.accumulate cuts a batch"),
        (PermissionError(13, "Permission denied", "params.yaml"), "params.yaml: may not be written or read"),
    ],
)
def test_what_the_machine_refuses_is_told_with_its_file_and_a_remedy(error, says):
    assert says in str(from_system(error))


def test_a_fault_of_the_program_is_not_taken_for_the_machine():
    assert from_system(FileNotFoundError(2, "No such file", "x")) is None
    assert from_system(RuntimeError("shape mismatch")) is None


def test_an_unknown_key_is_one_line_and_exit_code_2(world):
    world.edit("steps: 3", "step: 3")
    done = world.verb("distill", "--student", "small")
    assert done.returncode == 2
    assert done.stderr == (
        "error: params.yaml, section 'distill.small': key 'steps' is missing; "
        "unknown key 'step': remove it or correct its spelling; available: end, lr, steps.\n"
    )


def test_an_unknown_section_is_one_line_and_exit_code_2(world):
    world.edit("students: [small]", "students: [small]\ncolours: {}")
    done = world.verb("prepare")
    assert done.returncode == 2
    assert done.stderr.startswith("error: params.yaml has unknown key 'colours': remove it or correct its spelling")


def test_a_candidate_that_is_refused_is_exit_code_3_by_hand_and_0_under_dvc(built):
    built.edit("end: well", "end: refused")
    line = "refused by distill.min_agreement: 0.5, limit 0.9. small agrees with its teacher to 0.5 only.\n"
    for environment, code in (({}, 3), ({"DVC_STAGE": "distill@small"}, 0)):
        done = built.verb("distill", "--student", "small", **environment)
        assert (done.returncode, done.stderr) == (code, "")
        assert done.stdout.endswith(line)
    [run, *_] = built.runs("distill@small")
    assert run.info.status == "FINISHED"
    tags = {name: value for name, value in run.data.tags.items() if name.startswith("refusal.")}
    reason = "small agrees with its teacher to 0.5 only."
    assert tags == {
        "refusal.stage": "distill", "refusal.rule": "distill.min_agreement", "refusal.value": "0.5",
        "refusal.limit": "0.9", "refusal.reason": reason,
    }  # fmt: skip


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stopped_stage_leaves_the_earlier_artifact_no_draft_and_a_killed_run(built, number, code):
    built.edit("end: well", "end: never")
    earlier = (built.root / "artifacts/distill/small/card.json").read_text()
    stage = subprocess.Popen(
        [sys.executable, "-m", "pipeline", "distill", "--student", "small"],
        cwd=built.root,
        env=built.environment,
        stderr=subprocess.PIPE,
        text=True,
    )
    wait_for(built.root / "started")
    os.kill(stage.pid, number)
    _, stderr = stage.communicate(timeout=30)
    assert stage.returncode == code
    assert stderr.endswith("error: distill@small was stopped.\n")
    assert "Traceback" not in stderr
    assert (built.root / "artifacts/distill/small/card.json").read_text() == earlier
    assert not (built.root / "artifacts/.drafts/distill@small").exists()
    assert [run.info.status for run in built.runs("distill@small")] == ["KILLED", "FINISHED"]


def wait_for(path: Path, seconds: float = 60) -> None:
    until = time.monotonic() + seconds
    while not path.exists():
        assert time.monotonic() < until, f"{path} never came"
        time.sleep(0.05)


@pytest.mark.parametrize("arguments", [["--debug", "params", "--schema"], ["params", "--schema", "--debug"]])
def test_debug_is_taken_before_and_after_the_command(arguments, monkeypatch, capsys):
    monkeypatch.setenv(log_files.DEBUG, "")
    assert main(arguments) == 0
    assert log_files.debug()
    assert "--debug" not in capsys.readouterr().err


def test_debug_after_two_dashes_is_an_argument(monkeypatch):
    monkeypatch.setenv(log_files.DEBUG, "")
    assert main(["preset", "--", "--debug"]) == 2
    assert not log_files.debug()
