import pytest
import torch
from torch import nn

from pipeline.log import silent
from pipeline.training import fit, rate
from tests.training.work import CPU, recipe


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.GELU(), nn.Linear(8, 1))


def learn(module, config, checkpoint=None, log=silent, stop_at=None, spoil_at=None):
    def draw(indices, number, rngs):
        return torch.stack([torch.from_numpy(rng.standard_normal(3, dtype="float32")) for rng in rngs])

    def step(batch, number, rng):
        if number == stop_at:
            raise KeyboardInterrupt
        noise = torch.from_numpy(rng.standard_normal((len(batch), 1), dtype="float32")) * 0.1
        loss = (module(batch) - batch.sum(1, keepdim=True) + noise).square().mean()
        return {"loss": loss * float("nan") if number == spoil_at else loss}

    fit(module, draw, step, config, count=40, batch=16, log=log, name="learn", device=CPU, checkpoint=checkpoint)
    return module


def test_the_loop_learns():
    losses = []
    learn(network(), recipe(steps=120), log=lambda m, step: losses.append(m["learn/loss"]))
    assert losses[-1] < 0.4 * losses[0]


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_step():
    with pytest.raises(FloatingPointError, match=r"step 11: loss, gradient are not finite; no state was kept"):
        learn(network(), recipe(), spoil_at=11)


def test_without_averaging_the_last_weights_stay_and_with_it_they_differ():
    last, averaged = (learn(network(), recipe(ema_decay=d)).state_dict() for d in (0.0, 0.9))
    assert not torch.equal(last["0.weight"], averaged["0.weight"])


def test_the_rate_rises_stays_and_falls_to_a_step_above_zero():
    config = recipe(steps=10, warmup_steps=2, cooldown_steps=4)
    assert [rate(n, config) for n in range(10)] == [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]


def test_frozen_parameters_stay():
    module = network()
    module[0].weight.requires_grad_(False)
    before = module[0].weight.clone()
    learn(module, recipe())
    assert torch.equal(module[0].weight, before)
