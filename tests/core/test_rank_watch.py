"""Two processes over gloo: when one fails, both end within seconds and say why."""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import torch.distributed as dist

from pipeline.core.rank_watch import SILENT_POLLS, RankError, Watch

ROOT = Path(__file__).parents[2]
DAMAGED = "process 1 failed, which ends the others: the sample is damaged"


def ended(event: str, how: str) -> tuple[list[int], list[str], float]:
    """Exit codes, standard errors, and seconds between the end of the second process and that of the first."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.core.rank", event, how]
    processes = [
        subprocess.Popen(
            command, cwd=ROOT, env=os.environ | world | {"RANK": str(rank)}, stderr=subprocess.PIPE, text=True
        )
        for rank in range(2)
    ]
    try:
        said = [processes[1].communicate(timeout=120)[1]]
        begin = time.monotonic()
        said.insert(0, processes[0].communicate(timeout=30)[1])
    finally:
        for process in processes:
            process.kill()
    return [process.returncode for process in processes], said, time.monotonic() - begin


@pytest.mark.parametrize("how", ["collective", "computing"])
def test_one_that_raises_ends_both_within_seconds_with_its_reason(how):
    codes, said, seconds = ended("raise", how)
    assert codes[0] == 2
    # torch's store can abort the end of an interpreter on a busy machine, after the reason was written.
    assert codes[1] in (2, -signal.SIGABRT)
    assert said[1].startswith("error: the sample is damaged\n")
    assert said[0] == f"error: {DAMAGED}\n"
    assert seconds < 15


def test_one_that_is_killed_ends_the_other_within_seconds():
    codes, said, seconds = ended("kill", "collective")
    assert codes == [2, -9]
    assert "process 0 lost the connection to another process" in said[0]
    assert seconds < 15


@pytest.mark.slow
def test_one_that_is_terminated_ends_both():
    codes, said, seconds = ended("terminate", "computing")
    assert codes == [130, 143]
    assert said == ["error: the job was stopped.\n"] * 2
    assert seconds < 15


@pytest.mark.slow
def test_one_that_hears_nothing_is_ended():
    codes, said, seconds = ended("raise", "deaf")
    assert codes == [1, 2]
    assert said[0] == f"error: {DAMAGED}\n"
    assert seconds < 20


@pytest.mark.slow
def test_none_is_disturbed_without_a_failure():
    assert ended("none", "collective")[0] == [0, 0]


def watch_of(store, rank=0):
    watch = Watch(rank, 2, lambda: None)
    watch.connect(store)
    return watch


def test_a_failure_that_follows_from_anothers_has_its_reason():
    store = dist.HashStore()
    first, second = watch_of(store, 0), watch_of(store, 1)
    error = ValueError("no\n such file")
    assert second.fail(error) is error
    follows = first.fail(RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer"))
    assert isinstance(follows, RankError)
    assert str(follows) == "process 1 failed, which ends the others: no such file"
    own = FloatingPointError("step 3: loss is not finite")
    assert first.fail(own) is own


def test_an_error_of_its_own_is_not_taken_for_a_lost_connection():
    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
    assert watch_of(dist.HashStore()).fail(error) is error


def test_a_process_without_heartbeats_counts_as_lost():
    store = dist.HashStore()
    watch, _ = watch_of(store, 0), watch_of(store, 1)
    beats, silent = {}, {1: 0}
    lost = [watch._beat(number, beats, silent) for number in range(SILENT_POLLS + 1)]
    assert lost[:-1] == [None] * SILENT_POLLS
    assert lost[-1] == "process 1 has not responded for 60 s: it was killed, or its machine is down."
