"""Small trainings that the tests run in processes of their own: ``python work.py TASK OUT``."""

import os
import signal
import sys
from pathlib import Path

import torch
from torch import nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from pipeline.core.distributed import joined
from pipeline.core.log import silent
from pipeline.training import OptimizerConfig, fit

CPU = torch.device("cpu")
BATCHES = {"equal": (8, 1), "unequal": (7, 1), "in parts": (7, 3), "one each": (2, 1)}
"""Samples of a step, and parts each process computes its own in."""


def recipe(**changes):
    values = {
        "steps": 12, "lr": 0.05, "schedule": "trapezoid", "warmup_steps": 2, "cooldown_steps": 4, "weight_decay": 0.01,
        "clip_norm": 1.0, "ema_decay": 0.5, "accumulate": 1, "autocast": "none", "compile": False,
        "checkpoint_every": 1, "seed": 3,
    }  # fmt: skip
    return OptimizerConfig(**(values | changes))


class Network(nn.Module):
    """Convolutions, a norm over the batch, and two heads of which each step uses one."""

    def __init__(self, norm):
        super().__init__()
        torch.manual_seed(0)
        self.body = nn.Sequential(nn.Conv2d(2, 4, 3, padding=1, bias=False), norm, nn.GELU())
        self.heads = nn.ModuleList(nn.Conv2d(4, 1, 1) for _ in range(2))

    def forward(self, x, head):
        return self.heads[head](self.body(x))


def learn(module, config, *, batch=8, count=20, checkpoint=None, log=silent, on_step=lambda number: None, bad=-1):
    """Fit to targets of which each sample has some, or none, and one is bad; gives the gradients of each step."""
    gradients = []

    def remember(optimizer, arguments, keywords):
        named = module.named_parameters()
        gradients.append({name: None if p.grad is None else p.grad.clone() for name, p in named})

    def draw(indices, number, rngs):
        pixels = torch.stack([torch.from_numpy(rng.standard_normal((2, 5, 5))) for rng in rngs])
        chances = torch.stack([torch.from_numpy(rng.random((1, 5, 5))) for rng in rngs])
        samples = torch.tensor(indices).reshape(-1, 1, 1, 1)
        pixels += torch.where(samples == bad, torch.nan, samples / count)
        return pixels, chances < 0.2 * (samples % 3)

    def step(drawn, number, rng):
        on_step(number)
        x, present = drawn
        error = (module(x, int(rng.random() < 0.5)) - x.sum(1, keepdim=True)).square() * present
        count = present.sum().clamp(min=1)
        loss = error.sum() / count
        beside = module.heads[0].bias.mean() * 0 + loss / 2  # told, and not learned from
        return {"loss": loss, "half": beside, "weight": present.sum()}

    hook = register_optimizer_step_pre_hook(remember)
    try:
        fit(
            module, draw, step, config, count=count, batch=batch, log=log, name="learn", device=CPU,
            checkpoint=checkpoint, find_unused_parameters=True,
        )  # fmt: skip
    finally:
        hook.remove()
    return gradients


def results(normalised):
    """What each way to cut a batch leads to, in float64: gradients, weights and reported losses."""
    found = {}
    for name, (batch, accumulate) in BATCHES.items():
        logged = []
        module = Network(nn.BatchNorm2d(4) if normalised else nn.GroupNorm(2, 4)).double()
        config = recipe(steps=5, accumulate=accumulate, clip_norm=1e9)
        gradients = learn(module, config, batch=batch, log=lambda values, step, to=logged: to.append(values))
        losses = [{key: value[key] for key in ("learn/loss", "learn/half")} for value in logged]
        found[name] = {"gradients": gradients, "weights": module.state_dict(), "losses": losses}
    try:
        learn(Network(nn.GroupNorm(2, 4)).double(), recipe(), bad=5)
    except FloatingPointError as error:
        found["diverged"] = str(error)
    return found


def _share(out):
    with joined() as ranks:
        torch.save({flag: results(flag) for flag in (True, False)}, out.with_suffix(f".{ranks.rank}.pt"))


def _compile(out):
    """Gradients and weights of two processes that share batches, eager and compiled."""
    with joined() as ranks:
        found = {}
        for flag in (False, True):
            module = Network(nn.BatchNorm2d(4)).double()
            gradients = learn(module, recipe(steps=3, compile=flag, clip_norm=1e9))
            found[flag] = {"gradients": gradients, "weights": module.state_dict()}
        torch.save(found, out.with_suffix(f".{ranks.rank}.pt"))


def _die(out):
    """A run that ends itself as nothing can be caught, in the middle of its tenth step."""

    def on_step(number):
        if number == 9:
            os.kill(os.getpid(), signal.SIGKILL)

    learn(Network(nn.BatchNorm2d(4)).double(), recipe(checkpoint_every=4), checkpoint=out, on_step=on_step)


if __name__ == "__main__":
    {"share": _share, "compile": _compile, "die": _die}[sys.argv[1]](Path(sys.argv[2]))
