import copy
import time
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError
from torch import nn

from pipeline.core.errors import InputError
from pipeline.core.log import silent
from pipeline.training import autocast, fit, has_bf16, precision_of, rate
from pipeline.training.compiling import compiled
from pipeline.training.watch import Watch
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
    with pytest.raises(FloatingPointError, match=r"step 11: loss, gradient are not finite; no checkpoint was saved"):
        learn(network(), recipe(), spoil_at=11)


def test_without_averaging_the_last_weights_stay_and_with_it_they_differ():
    last, averaged = (learn(network(), recipe(ema_decay=d)).state_dict() for d in (0.0, 0.9))
    assert not torch.equal(last["0.weight"], averaged["0.weight"])


def test_the_rate_rises_stays_and_falls_to_a_step_above_zero():
    config = recipe(steps=10, warmup_steps=2, cooldown_steps=4)
    assert [rate(n, config, 10) for n in range(10)] == [0.5, 1, 1, 1, 1, 1, 1, 0.75, 0.5, 0.25]


def test_frozen_parameters_stay():
    module = network()
    module[0].weight.requires_grad_(False)
    before = module[0].weight.clone()
    learn(module, recipe())
    assert torch.equal(module[0].weight, before)


def test_a_cosine_rises_falls_slowly_at_both_ends_and_never_to_zero():
    config = recipe(steps=100, warmup_steps=10, cooldown_steps=0, schedule="cosine")
    rates = [rate(n, config, 100) for n in range(100)]
    assert rates[9] == 1.0 == max(rates)
    assert rates[:10] == [(n + 1) / 10 for n in range(10)]
    assert rates[9 + 91 // 2] == pytest.approx(0.5, abs=0.02)
    assert all(a > b for a, b in pairwise(rates[9:]))
    assert 0 < rates[-1] < 1e-3


@given(
    steps=st.integers(1, 60),
    warmup=st.integers(0, 80),
    cooldown=st.integers(0, 80),
    schedule=st.sampled_from(["trapezoid", "cosine"]),
)
def test_every_step_of_every_schedule_learns_and_none_more_than_the_peak(steps, warmup, cooldown, schedule):
    cooldown = 0 if schedule == "cosine" else cooldown
    config = recipe(steps=steps, warmup_steps=warmup, cooldown_steps=cooldown, schedule=schedule)
    assert all(0 < rate(n, config, steps) <= 1 for n in range(steps))


@given(epochs=st.floats(0.1, 20), images=st.integers(1, 5000), batch=st.integers(1, 256), whole=st.booleans())
def test_epochs_are_the_fewest_steps_that_cover_the_images(epochs, images, batch, whole):
    epochs = float(round(epochs + 1)) if whole else epochs
    config = recipe(steps=None, epochs=epochs, warmup_steps=0, cooldown_steps=0)
    steps = config.total_steps(images, batch)
    assert (steps - 1) * batch < epochs * images <= steps * batch * (1 + 1e-5)


def test_a_run_of_epochs_equals_one_of_their_steps_and_logs_the_number():
    logged = {}
    by_epochs = learn(network(), recipe(steps=None, epochs=3), log=lambda m, step: logged.update(m))
    by_steps = learn(network(), recipe(steps=8))  # 3 epochs of 40 samples in batches of 16 are 7.5 steps
    assert logged["learn/steps"] == 8
    assert all(torch.equal(a, b) for a, b in zip(by_epochs.parameters(), by_steps.parameters(), strict=True))


def test_epochs_shorter_than_the_warm_up_are_refused_when_the_run_starts():
    with pytest.raises(InputError, match=r"epochs 1 of 40 images in batches of 16 are 3 steps, fewer than warmup_ste"):
        learn(network(), recipe(steps=None, epochs=1, warmup_steps=5))


@pytest.mark.parametrize("both", [{"steps": 3, "epochs": 1}, {"steps": None}])
def test_a_length_is_given_either_in_steps_or_in_epochs(both):
    with pytest.raises(ValidationError, match="exactly one of steps and epochs"):
        recipe(**both)


def test_a_seed_beyond_what_torch_takes_is_refused():
    with pytest.raises(ValidationError, match="less than 18446744073709551616"):
        recipe(seed=2**64)


def test_a_cosine_with_a_cool_down_is_refused():
    with pytest.raises(ValidationError, match="set cooldown_steps to 0"):
        recipe(schedule="cosine", cooldown_steps=3)


def test_a_loss_that_is_no_number_names_the_last_good_state(tmp_path):
    checkpoint = tmp_path / "run-0.pt"
    with pytest.raises(FloatingPointError) as caught:
        learn(network(), recipe(checkpoint_every=4), checkpoint, spoil_at=9)
    state = f"the last good state, after 8 steps, is in {checkpoint}. "
    assert f"step 9: loss, gradient are not finite; {state}" in str(caught.value)
    assert torch.load(checkpoint)["done"] == 8
    assert all(value.isfinite().all() for value in torch.load(checkpoint)["module"].values())


def test_where_the_device_is_not_waited_for_the_first_bad_step_is_named_all_the_same():
    watch = Watch(None, 0)
    for number, value in enumerate((1.0, 2.0, float("inf"), float("nan"))):
        watch.record(number, {"loss": torch.tensor(0.0), "dice": torch.tensor(value)})
    with pytest.raises(FloatingPointError, match=r"step 2: dice is not finite; no checkpoint was saved before it\."):
        watch.check()


@pytest.mark.parametrize(("until", "ends"), [(8, True), (10**9, False)])
def test_in_fp16_a_gradient_may_be_infinite_for_some_steps_but_not_for_good(monkeypatch, until, ends):
    monkeypatch.setattr("pipeline.training.loop.precision_of", lambda device, name: "fp16")
    module = nn.Linear(3, 1)
    before = copy.deepcopy(module.state_dict())

    def step(batch, number, rng):
        answer = module(batch)
        # The root of 0 is finite, and its slope is not.
        return {"loss": answer.square().mean() + ((answer * 0).square().sum().sqrt() if number < until else 0)}

    def train():
        fit(
            module, lambda indices, number, rngs: torch.ones(len(indices), 3), step, recipe(steps=60), count=9,
            batch=4, log=silent, name="x", device=CPU,
        )  # fmt: skip

    if ends:
        train()
        assert not torch.equal(module.weight, before["weight"])
        return
    with pytest.raises(FloatingPointError, match=r"step 26: the fp16 gradient has not been finite.*autocast to bf16"):
        train()
    assert torch.equal(module.weight, before["weight"])


def test_the_loop_reports_its_pace_and_what_it_waited_for():
    reports = []

    def draw(indices, number, rngs):
        time.sleep(0.02)
        return torch.zeros(len(indices), 3)

    module = nn.Linear(3, 1)
    fit(
        module, draw, lambda batch, number, rng: {"loss": module(batch).square().mean()}, recipe(steps=41), count=9,
        batch=4, log=lambda values, step: reports.append(values), name="x", device=CPU,
    )  # fmt: skip
    keys = {f"x/{key}" for key in ("loss", "lr", "images_per_s", "waiting_share")}
    assert [set(report) for report in reports] == [keys] * 3
    assert all(0 < report["x/waiting_share"] <= 1 for report in reports)
    assert all(0 < report["x/images_per_s"] < 4 / 0.02 for report in reports[1:])


def test_autocast_is_used_where_the_device_has_it_and_parameters_stay_in_fp32():
    module, seen = nn.Linear(3, 1), []

    def step(batch, number, rng):
        with autocast(CPU, "bf16"):
            out = module(batch)
        seen.append(out.dtype)
        return {"loss": out.float().square().mean()}

    fit(
        module, lambda indices, number, rngs: torch.ones(len(indices), 3), step, recipe(steps=1, autocast="bf16"),
        count=2, batch=2, log=silent, name="x", device=CPU,
    )  # fmt: skip
    assert seen == [torch.bfloat16 if has_bf16(CPU) else torch.float32]
    assert module.weight.dtype == torch.float32
    assert precision_of(CPU, "fp16") == precision_of(CPU, "none") == "fp32"


@pytest.mark.slow
def test_a_compiled_module_is_called_through_its_compiled_forward_and_keeps_its_keys():
    class Whole(nn.Module):
        """Has parts, and no forward of its own, as `Sam`."""

        def __init__(self):
            super().__init__()
            self.decoder = nn.Linear(1, 1)

    module = nn.ModuleDict({"encoder": network(), "heads": nn.ModuleList([Whole()])})
    keys = list(module.state_dict())
    with compiled(module, enabled=True):
        parts = [module["encoder"], module["heads"][0].decoder]
        assert all(part._compiled_call_impl is not None for part in parts)
        assert list(module.state_dict()) == keys
    assert all(part._compiled_call_impl is None for part in parts)
    assert copy.deepcopy(module).state_dict().keys() == module.state_dict().keys()


@pytest.mark.slow
def test_a_compiled_run_learns_what_an_eager_one_does_and_is_resumed(tmp_path):
    eager = learn(network(), recipe()).state_dict()
    checkpoint = tmp_path / "run-0.pt"
    with pytest.raises(KeyboardInterrupt):
        learn(network(), recipe(compile=True), checkpoint, stop_at=7)
    module = learn(network(), recipe(compile=True), checkpoint)
    torch.testing.assert_close(module.state_dict(), eager, rtol=1e-3, atol=1e-5)


def test_what_was_trained_before_can_learn_slower(tmp_path):
    module = nn.ModuleDict({"new": nn.Linear(1, 1), "old": nn.Linear(1, 1)})
    before = {name: value.clone() for name, value in module.state_dict().items()}

    def step(batch, number, rng):
        return {"loss": sum(part(torch.ones(1, 1)).sum() for part in module.values())}

    fit(
        module, lambda indices, number, rngs: None, step, recipe(steps=1, ema_decay=0.0, weight_decay=0.0), count=1,
        batch=1, log=silent, name="x", device=torch.device("cpu"), lr_shares={"old.": 0.25},
    )  # fmt: skip
    moved = {name: (value - before[name]).abs().item() for name, value in module.state_dict().items()}
    # The first step of Adam moves every parameter by the learning rate.
    assert moved["old.bias"] == pytest.approx(0.25 * moved["new.bias"], rel=1e-3)
    assert moved["old.weight"] == pytest.approx(0.25 * moved["new.weight"], rel=1e-3)
