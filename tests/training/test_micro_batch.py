"""One preset for any number of GPUs: what each computes at once stays the same, and so does the step."""

from pathlib import Path

import pytest
import torch
import yaml
from pydantic import ValidationError
from torch import nn

from pipeline.core.distributed import Ranks
from pipeline.training import OptimizerConfig, loop
from pipeline.training.samples import Samples

PRESETS = sorted((Path(__file__).parents[2] / "presets").glob("*_sa1b.yaml"))
BATCH = {"distill": 16, "align": 8}
"""Defaults of the sections."""


def trainings(path):
    """Stage, batch and optimizer of every training of a preset."""
    for stage in ("distill", "align"):
        for section in yaml.safe_load(path.read_text())[stage].values():
            if section is not None and section.get("optimizer"):
                yield section.get("batch", BATCH[stage]), OptimizerConfig.model_validate(section["optimizer"])


def samples(batch, config, rank, world_size):
    parts = config.parts(batch, world_size)
    return Samples(lambda *_: None, 1000, batch, parts, config.seed, Ranks(rank, world_size))


@pytest.mark.parametrize("world_size", [1, 2, 4, 8])
@pytest.mark.parametrize("path", PRESETS, ids=lambda path: path.stem)
def test_a_preset_runs_on_any_number_of_gpus(path, world_size):
    for batch, config in trainings(path):
        positions = []
        for rank in range(world_size):
            share = samples(batch, config, rank, world_size)
            assert max(share.sizes()) <= (config.micro_batch or batch)
            positions += [position for part in share.positions() for position in part]
        assert positions == list(range(batch))


def test_the_number_of_parts_follows_from_batch_processes_and_micro_batch():
    config = OptimizerConfig(steps=1, lr=1.0, warmup_steps=0, micro_batch=4)
    assert [config.parts(256, processes) for processes in (1, 8, 64, 256)] == [64, 8, 1, 1]
    assert [config.parts(10, processes) for processes in (1, 2)] == [3, 2]
    with pytest.raises(ValidationError, match="micro_batch decides the number of parts: remove accumulate"):
        OptimizerConfig(steps=1, lr=1.0, warmup_steps=0, micro_batch=4, accumulate=2)


@pytest.mark.parametrize(("device", "fused"), [("cuda", True), ("cpu", None)])
def test_weights_on_a_gpu_are_updated_by_fused_kernels(monkeypatch, device, fused):
    asked, real = {}, torch.optim.AdamW

    def adamw(groups, **settings):
        asked.update(settings)
        return real(groups, lr=1.0)

    monkeypatch.setattr(torch.optim, "AdamW", adamw)
    config = OptimizerConfig(steps=1, lr=1.0, warmup_steps=0)
    loop._optimizer(nn.Linear(1, 1), config, {}, torch.device(device))
    assert asked["fused"] is fused
