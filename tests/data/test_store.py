"""Files of embeddings are written batch by batch, and are what safetensors writes at once."""

import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.core.errors import InputError
from pipeline.data.store import locate

IMAGES, BATCH = 11, 3
CHANNELS = {"embeddings": 6, "block_4": 5, "block_10": 7}


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(IMAGES, n, 4, 4, generator=generator).half() for name, n in CHANNELS.items()}


def batches(tensors):
    for begin in range(0, IMAGES, BATCH):
        yield {name: tensor[begin : begin + BATCH] for name, tensor in tensors.items()}


def test_the_file_is_the_one_safetensors_writes(tensors, tmp_path):
    target = locate(tmp_path / "store", "train-00000", {})
    seal = target.write(IMAGES, batches(tensors))
    save_file(tensors, tmp_path / "whole")
    assert target.path.read_bytes() == (tmp_path / "whole").read_bytes()
    assert load_file(target.path)["block_10"].equal(tensors["block_10"])
    assert target.seal() == seal
    wide = tensors["embeddings"].double()
    assert (seal.images, seal.bytes) == (IMAGES, target.path.stat().st_size)
    assert (seal.mean, seal.mean_square) == pytest.approx((wide.mean().item(), wide.square().mean().item()))


def test_no_more_than_two_batches_are_in_memory(tensors, tmp_path):
    alive, most = weakref.WeakSet(), 0

    def copies():
        nonlocal most
        for batch in batches(tensors):
            copied = {name: tensor.clone() for name, tensor in batch.items()}
            alive.update(copied.values())
            most = max(most, len(alive))
            yield copied
            del batch, copied

    locate(tmp_path, "train-00000", {}).write(IMAGES, copies())
    assert most <= 2 * len(CHANNELS)


def test_what_a_killed_process_left_is_replaced(tensors, tmp_path):
    target = locate(tmp_path, "train-00000", {})
    with pytest.raises(KeyboardInterrupt):
        target.write(IMAGES, interrupted(tensors))
    assert not [path for path in target.path.parent.iterdir() if path.is_file()]
    target.path.with_name(f".{target.path.name}.part").write_bytes(b"x" * 10_000)
    target.write(IMAGES, batches(tensors))
    assert target.seal() is not None
    assert not list(tmp_path.rglob("*.part"))


def interrupted(tensors):
    yield next(batches(tensors))
    raise KeyboardInterrupt


def test_a_full_disk_is_named(tensors, tmp_path, monkeypatch):
    target = locate(tmp_path / "absent", "train-00000", {})
    (tmp_path / "absent").write_text("a file where the store should be")
    with pytest.raises(InputError, match=r"embeddings cannot be written to .*free space, or set embed\.store"):
        target.write(IMAGES, batches(tensors))
