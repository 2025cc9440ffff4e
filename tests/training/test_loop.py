import pytest
import torch
from torch import nn

from pipeline.log import silent
from pipeline.training import OptimizerConfig, checkpoint_of, epoch_indices, fit, rate

CPU = torch.device("cpu")


def recipe(**changes):
    values = {
        "steps": 12, "lr": 0.05, "schedule": "trapezoid", "warmup_steps": 2, "cooldown_steps": 4, "weight_decay": 0.01,
        "clip_norm": 1.0, "ema_decay": 0.5, "accumulate": 1, "autocast": "none", "compile": False,
        "checkpoint_every": 1, "seed": 3,
    }  # fmt: skip
    return OptimizerConfig(**(values | changes))


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


def test_an_interrupted_run_ends_with_the_same_weights_to_the_bit(tmp_path):
    straight = learn(network(), recipe()).state_dict()
    checkpoint = tmp_path / "run.pt"
    with pytest.raises(KeyboardInterrupt):
        learn(network(), recipe(), checkpoint, stop_at=7)
    assert checkpoint.exists()
    resumed = learn(network(), recipe(), checkpoint).state_dict()
    assert all(torch.equal(straight[key], resumed[key]) for key in straight)
    again = learn(network(), recipe(), checkpoint).state_dict()  # until the result is written, a crash costs nothing
    assert all(torch.equal(straight[key], again[key]) for key in straight)


def test_other_parameters_or_inputs_never_continue_a_run():
    names = {
        checkpoint_of("distill", recipe().model_dump_json(), "input"),
        checkpoint_of("distill", recipe(lr=0.1).model_dump_json(), "input"),
        checkpoint_of("distill", recipe().model_dump_json(), "other input"),
        checkpoint_of("align", recipe().model_dump_json(), "input"),
    }
    assert len(names) == 4


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_step():
    with pytest.raises(FloatingPointError, match=r"step 11: loss, gradient are not finite; no state was kept"):
        learn(network(), recipe(), spoil_at=11)


def test_without_averaging_the_last_weights_stay_and_with_it_they_differ():
    last, averaged = (learn(network(), recipe(ema_decay=d)).state_dict() for d in (0.0, 0.9))
    assert not torch.equal(last["0.weight"], averaged["0.weight"])


def test_the_rate_rises_stays_and_falls_to_a_step_above_zero():
    config = recipe(steps=10, warmup_steps=2, cooldown_steps=4)
    assert [rate(n, config) for n in range(10)] == [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]


def test_an_epoch_visits_each_sample_once_in_an_order_of_its_own():
    seen = [i for n in range(6) for i in epoch_indices(10, 5, n, seed=0)]
    assert sorted(seen[:10]) == sorted(seen[10:20]) == list(range(10))
    assert seen[:10] != seen[10:20]
    assert len(epoch_indices(3, 8, 0, seed=0)) == 8


def test_frozen_parameters_stay():
    module = network()
    module[0].weight.requires_grad_(False)
    before = module[0].weight.clone()
    learn(module, recipe())
    assert torch.equal(module[0].weight, before)
