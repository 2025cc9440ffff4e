"""Weights: safetensors and files of `torch.save`."""

import io

import torch
from numpy.random import Generator
from safetensors.torch import save

from pipeline.models.pretrained.files import read
from tests.fuzz.mutation import Case, damage, pick, written

_STATE = {"a.weight": torch.ones(3, 4), "b": torch.arange(5), "c": torch.ones(2).half()}
_INVALID = (
    torch.tensor([float("nan")]),
    torch.tensor([float("inf")]).half(),
    torch.ones(2, dtype=torch.complex64),
    torch.eye(3).to_sparse(),
    torch.ones(2, device="meta"),
    torch.ones(1).expand(1 << 20),
)


def tensors(rng: Generator) -> Case:
    """A damaged state dict, or one with a tensor that is refused."""
    if rng.random() < 0.2:
        raw = _saved({"a": pick(rng, _INVALID)}, rng.random() < 0.6)
        return Case(lambda folder: read(written(folder, "w.pth", raw)), invalid=True)
    raw = save(_STATE) if rng.random() < 0.4 else _saved(pick(rng, (_STATE, {"model": _STATE})), rng.random() < 0.6)
    raw = damage(rng, raw)
    return Case(lambda folder: read(written(folder, "w.pth", raw)))


def _saved(state, zipped: bool) -> bytes:
    stream = io.BytesIO()
    torch.save(state, stream, _use_new_zipfile_serialization=zipped)
    return stream.getvalue()
