"""Worker processes draw what threads do, and leave nothing behind."""

import os
import signal
import subprocess
import sys
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch

from pipeline.core.distributed import Ranks
from pipeline.core.errors import InputError
from pipeline.core.loading import Loading, Request, load, loading_of
from pipeline.training.samples import Samples

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create:UserWarning")

ROOT = Path(__file__).parents[2]
WORKERS, THREADS = Loading(workers=2), Loading(threads=2)


@dataclass(frozen=True)
class Drawn:
    """A batch that is not a tensor."""

    indices: list[int]
    values: torch.Tensor
    process: int


@dataclass(frozen=True)
class Draw:
    """Fails, or is killed, at a step."""

    fails_at: int = -1
    dies_at: int = -1

    def __call__(self, indices: list[int], number: int, rngs: list[np.random.Generator]) -> Drawn:
        if number == self.fails_at:
            raise InputError("a damaged sample")
        if number == self.dies_at:
            os.kill(os.getpid(), signal.SIGKILL)
        return Drawn(indices, torch.tensor([rng.random() for rng in rngs]), os.getpid())


def children():
    return {child.pid for child in psutil.Process().children(recursive=True)}


def none_left(before, seconds=30):
    """Whether all processes started since have ended; the resource tracker of `multiprocessing` stays."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        new = [psutil.Process(pid) for pid in children() - before if psutil.pid_exists(pid)]
        if not [p for p in new if "resource_tracker" not in " ".join(p.cmdline())]:
            return True
        time.sleep(0.1)
    return False


def test_worker_processes_draw_what_threads_draw_in_the_same_order():
    state = torch.get_rng_state()
    samples = Samples(Draw(), 11, 5, 2, 3, Ranks(1, 2))
    threads, workers = ([*samples.ahead(2, 9, loading)] for loading in (THREADS, WORKERS))
    assert len(threads) == 14
    assert [batch.indices for batch in workers] == [batch.indices for batch in threads]
    assert all(torch.equal(a.values, b.values) for a, b in zip(workers, threads, strict=True))
    assert os.getpid() not in {batch.process for batch in workers}
    assert torch.equal(torch.get_rng_state(), state)


def test_an_error_in_a_worker_process_is_raised_in_its_words_where_its_batch_is_due():
    before = children()
    batches = Samples(Draw(fails_at=3), 10, 2, 1, 0, Ranks()).ahead(0, 8, WORKERS)
    assert [next(batches).indices for _ in range(3)]
    with pytest.raises(InputError, match=r"^a damaged sample$"):
        next(batches)
    assert none_left(before)


def test_a_worker_process_that_is_killed_is_named_and_the_others_end():
    before = children()
    with pytest.raises(InputError, match=r"a process that reads training data ended .*lower optimizer.num_workers"):
        [*Samples(Draw(dies_at=3), 10, 2, 1, 0, Ranks()).ahead(0, 8, WORKERS)]
    assert none_left(before)


def test_a_run_that_stops_early_ends_its_worker_processes():
    before = children()
    with closing(load(Draw(), (Request([n], n, [(n,)]) for n in range(10**6)), WORKERS)) as batches:
        next(batches)
    assert none_left(before)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_run_that_is_killed_leaves_no_process(number):
    command = [sys.executable, "-m", "tests.core.endless"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "drawn\n"
        own = psutil.Process(process.pid).children(recursive=True)
        assert len(own) >= 2
        process.send_signal(number)
        process.wait(30)
        _, alive = psutil.wait_procs(own, 30)
        assert not alive
    finally:
        process.kill()


def test_who_draws_by_default(monkeypatch):
    def closure(*_):
        return None

    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(24)))
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert loading_of(Draw(), "auto", cpu) == Loading(0, 1, pin=False)
    assert loading_of(Draw(), "auto", gpu) == Loading(16, 8, pin=True)
    assert loading_of(Draw(), 3, cpu) == Loading(3, 1, pin=False)
    assert loading_of(closure, "auto", gpu) == Loading(0, 8, pin=True)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert loading_of(Draw(), "auto", gpu) == Loading(5, 6, pin=True)
