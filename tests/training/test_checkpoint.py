import errno
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from pipeline.core.errors import InputError
from pipeline.training import checkpoint_of
from tests.training.work import Network, learn, recipe

ROOT = Path(__file__).parents[2]


def train(checkpoint=None, **changes):
    module = Network(nn.BatchNorm2d(4)).double()
    on_step = changes.pop("on_step", lambda number: None)
    learn(module, recipe(**{"checkpoint_every": 4} | changes), checkpoint=checkpoint, on_step=on_step)
    return module.state_dict()


def stop_at(step):
    def on_step(number):
        if number == step:
            raise KeyboardInterrupt

    return on_step


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_a_process_killed_in_a_step_goes_on_and_ends_with_the_same_weights_to_the_bit(tmp_path):
    checkpoint = tmp_path / "run-0.pt"
    command = [sys.executable, "-m", "tests.training.work", "die", str(checkpoint)]
    died = subprocess.run(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}, timeout=600)
    assert died.returncode == -signal.SIGKILL
    assert torch.load(checkpoint)["done"] == 8
    (tmp_path / ".run-0.pt.part").write_bytes(b"what it was writing")
    steps = []
    assert equal(train(checkpoint, on_step=steps.append), train())
    assert steps == [8, 9, 10, 11]
    assert [path.name for path in tmp_path.iterdir()] == ["run-0.pt"]


@pytest.mark.parametrize("schedule", [{}, {"schedule": "cosine", "cooldown_steps": 0}, {"accumulate": 3}])
@pytest.mark.parametrize("step", [1, 4, 7, 11])
def test_wherever_it_is_interrupted_a_run_ends_with_the_same_weights(tmp_path, schedule, step):
    checkpoint = tmp_path / "run-0.pt"
    with pytest.raises(KeyboardInterrupt):
        train(checkpoint, on_step=stop_at(step), **schedule)
    assert equal(train(checkpoint, **schedule), train(**schedule))


def test_until_the_caller_has_written_the_result_a_finished_run_costs_nothing_again(tmp_path):
    checkpoint, steps = tmp_path / "run-0.pt", []
    first = train(checkpoint)
    assert equal(train(checkpoint, on_step=steps.append), first)
    assert steps == []


def test_other_parameters_or_inputs_never_continue_a_run():
    names = {
        checkpoint_of("distill", recipe().model_dump_json(), "input"),
        checkpoint_of("distill", recipe(lr=0.1).model_dump_json(), "input"),
        checkpoint_of("distill", recipe().model_dump_json(), "other input"),
        checkpoint_of("align", recipe().model_dump_json(), "input"),
    }
    assert len(names) == 4


def test_a_run_of_other_parameters_starts_anew_and_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    first, second, other = (checkpoint_of(*name) for name in (("a-b", 1), ("a-b", 2), ("a-b-c", 1)))
    for path in (first, other):
        with pytest.raises(KeyboardInterrupt):
            train(path, on_step=stop_at(9))
    capsys.readouterr()
    steps = []
    train(second, on_step=steps.append)
    said = capsys.readouterr().err
    assert steps[0] == 0
    assert "a-b starts from scratch: the checkpoint of an interrupted run with other parameters" in said
    assert f"not used ({first})" in said
    assert str(other) not in said
    train(second)
    assert "from scratch" not in capsys.readouterr().err
    assert first.exists()


def test_a_full_disk_leaves_the_earlier_state_whole(tmp_path, monkeypatch):
    checkpoint = tmp_path / "run-0.pt"
    with pytest.raises(KeyboardInterrupt):
        train(checkpoint, on_step=stop_at(6))
    before = checkpoint.read_bytes()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        train(checkpoint)
    assert checkpoint.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["run-0.pt"]


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.write_bytes(path.read_bytes()[:1000]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("hello"),
        lambda path: torch.save({"done": 3, "module": {}}, path),
        lambda path: torch.save([1, 2], path),
        lambda path: torch.save({**torch.load(path), "module": nn.Linear(2, 2).state_dict()}, path),
    ],
)
def test_a_damaged_state_or_one_of_another_version_says_that_it_can_be_removed(tmp_path, spoil):
    checkpoint = tmp_path / "run-0.pt"
    with pytest.raises(KeyboardInterrupt):
        train(checkpoint, on_step=stop_at(6))
    spoil(checkpoint)
    with pytest.raises(
        InputError, match=r"run-0\.pt of an interrupted run cannot be read.*delete it to start from scratch"
    ):
        train(checkpoint)
