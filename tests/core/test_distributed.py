"""Two processes that meet over gloo learn what one does, however the batch is cut."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.core.distributed import Ranks
from pipeline.core.errors import InputError
from pipeline.core.loading import Loading
from pipeline.training.samples import Samples, epoch_indices
from tests.training.work import BATCHES, results

EXACT = {"rtol": 1e-9, "atol": 1e-12}
ROOT = Path(__file__).parents[2]


def work(task, out):
    """What each of two processes came to in a task of `tests.training.work`."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    world = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.training.work", task, str(out)]
    processes = [
        subprocess.Popen(command, cwd=ROOT, env=os.environ | world | {"RANK": str(rank)}, stderr=subprocess.PIPE)
        for rank in range(2)
    ]
    for process in processes:
        _, said = process.communicate(timeout=600)
        assert process.returncode == 0, said.decode()
    return [torch.load(out.with_suffix(f".{rank}.pt")) for rank in range(2)]


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """What both of two processes came to, by whether the network has batch norms."""
    return work("share", tmp_path_factory.mktemp("shared") / "found")


@pytest.fixture(scope="module")
def alone():
    """What one process comes to."""
    return {normalised: results(normalised) for normalised in (True, False)}


# A batch norm sees one part of a process's share at a time, so with it a batch in parts is another batch.
CUTS = [
    (name, normalised) for name in BATCHES for normalised in (True, False) if (name, normalised) != ("in parts", True)
]


@pytest.mark.parametrize(("cut", "normalised"), CUTS)
def test_gradients_weights_and_reported_losses_are_those_of_one_process(shared, alone, cut, normalised):
    mine, yours = (found[normalised][cut] for found in shared)
    one = alone[normalised][cut]
    for key in ("gradients", "weights"):
        torch.testing.assert_close(mine[key], one[key], **EXACT)
        torch.testing.assert_close(yours[key], one[key], **EXACT)
    torch.testing.assert_close(mine["losses"], one["losses"], **EXACT)
    assert yours["losses"] == []


@pytest.mark.slow
def test_two_processes_that_compile_learn_what_they_do_without(tmp_path):
    for found in work("compile", tmp_path / "found"):
        torch.testing.assert_close(found[True], found[False], rtol=1e-6, atol=1e-9)


def test_what_diverges_in_one_process_stops_all_at_the_step_that_one_process_would_name(shared, alone):
    told = alone[False]["diverged"]
    assert "step 1: loss, half, gradient are not finite" in told
    assert [found[False]["diverged"] for found in shared] == [told, told]


def test_a_batch_in_parts_has_the_gradients_of_the_batch_at_once(alone):
    whole, parts = alone[False]["unequal"], alone[False]["in parts"]
    for key in ("gradients", "weights", "losses"):
        torch.testing.assert_close(parts[key], whole[key], **EXACT)


@given(
    count=st.integers(1, 40),
    batch=st.integers(1, 24),
    ranks=st.integers(1, 5),
    accumulate=st.integers(1, 4),
    seed=st.integers(0, 3),
)
@settings(deadline=None, max_examples=60)
def test_every_sample_is_seen_once_in_an_epoch_whoever_sees_it_and_with_the_same_chances(
    count, batch, ranks, accumulate, seed
):
    steps = -(-2 * count // batch)

    def draw(indices, number, rngs):
        assert len(indices) > 0
        return [(index, float(rng.random())) for index, rng in zip(indices, rngs, strict=True)]

    def seen(ranks, accumulate):
        shares = [Samples(draw, count, batch, accumulate, seed, Ranks(rank, ranks)) for rank in range(ranks)]
        parts = [[*share.ahead(0, steps, Loading(threads=2))] for share in shares]
        each = [part for n in range(steps) for own in parts for part in own[n * accumulate : (n + 1) * accumulate]]
        return [sample for part in each for sample in part]

    if batch < ranks * accumulate:
        with pytest.raises(InputError, match=f"a batch of {batch} cannot be cut into {ranks * accumulate} parts"):
            seen(ranks, accumulate)
        return
    found = seen(ranks, accumulate)
    assert found == seen(1, 1)
    indices, chances = zip(*found, strict=True)
    assert sorted(indices[:count]) == sorted(indices[count : 2 * count]) == list(range(count))
    assert len(set(chances)) == len(found)


def test_the_order_changes_from_epoch_to_epoch():
    seen = [i for n in range(6) for i in epoch_indices(10, 5, n, seed=0)]
    assert seen[:10] != seen[10:20]


def test_nothing_to_learn_from_is_said():
    with pytest.raises(InputError, match="no sample to train on"):
        Samples(lambda *_: None, 0, 4, 1, 0, Ranks())


def test_an_error_of_a_drawing_thread_comes_out_where_its_batch_is_due():
    def draw(indices, number, rngs):
        if number == 3:
            raise InputError("a damaged sample")
        return number

    batches = Samples(draw, 10, 2, 1, 0, Ranks()).ahead(0, 8, Loading(threads=3))
    assert [next(batches) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(InputError, match="a damaged sample"):
        next(batches)
