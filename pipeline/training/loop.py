"""The one training loop: optimizer, schedule, averaged weights, checkpoints. What is learned is the caller's function.

Everything random in a step comes from generators seeded by the run's seed and the step's number. So a step needs no
history, and a run that is killed and started again goes on as if nothing had happened.

A step may be computed in parts: by several processes that ``torchrun`` started, and by each of them one part after the
other. Gradients and reported losses are those of the whole batch at once: a part's mean counts as much as the number of
things it was taken over. Batch norm sees the batch of all processes, but only one part of it at a time.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, nullcontext
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pipeline.core.distributed import Ranks, current
from pipeline.core.errors import InputError
from pipeline.core.log import Log
from pipeline.core.progress import progress
from pipeline.training.batch_norm import synchronised
from pipeline.training.checkpoint import Stateful, restore, save, tell_of_others
from pipeline.training.compiling import compiled
from pipeline.training.config import OptimizerConfig, rate
from pipeline.training.device import drawing_threads, pinned, precision_of
from pipeline.training.samples import Draw, Samples, step_generator
from pipeline.training.watch import Pace, Watch

BatchT = TypeVar("BatchT")

Step = Callable[[BatchT, int, np.random.Generator], Mapping[str, Tensor]]
"""``step(batch, number, generator)`` gives named losses of a part of a step; ``loss`` is the one to minimise.

``weight`` beside them is the count of things that their means were taken over (prompts, cells), in any unit that all
parts of a step share; without it, all parts count alike as many samples as they hold. The generator is the same for all
parts: what differs from sample to sample is drawn from the generators that ``draw`` got, which may go with the batch.
"""

_NOT_DECAYED = ("attention_biases", "pos_embed", "position")
"""What has more than one dimension and is no matrix or kernel."""

LOG_EVERY = 20


def fit(
    module: nn.Module,
    draw: Draw[BatchT],
    step: Step[BatchT],
    config: OptimizerConfig,
    *,
    count: int,
    batch: int,
    log: Log,
    name: str,
    device: torch.device,
    checkpoint: Path | None = None,
    lr_shares: Mapping[str, float] = MappingProxyType({}),
) -> None:
    """Train ``module``'s parameters that require gradients, and leave the averaged weights in it.

    Args:
        module: Changed in place.
        draw: Makes a batch, or a part of one.
        step: Computes its losses.
        config: The recipe.
        count: Samples there are; each is drawn once before any is again.
        batch: Samples of one step, shared by all processes that have `joined`.
        log: Gets each loss as ``<name>/<loss>`` every `LOG_EVERY` steps, in the first process.
        name: Shown on the progress bar.
        device: Where ``module`` is.
        checkpoint: File to go on from where it exists, renewed every ``checkpoint_every`` steps. It goes when the
            artifact is in its place (`Contents.scratch`), so that a full disk at the end costs no training.
        lr_shares: Of the learning rate, by the beginning of parameters' names: what was trained before learns slower.

    Raises:
        FloatingPointError: A loss is not finite.
        InputError: The checkpoint is damaged or another version's, or the batch has fewer samples than parts.
    """
    ranks = current()
    drawn = pinned(draw) if device.type == "cuda" else draw
    samples = Samples(drawn, count, batch, config.accumulate, config.seed, ranks)
    optimizer = _optimizer(module, config, lr_shares)
    average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay), use_buffers=True)
    scaler = torch.amp.GradScaler(device.type, enabled=precision_of(device, config.autocast) == "fp16")
    state: dict[str, Stateful] = {"module": module, "optimizer": optimizer, "average": average, "scaler": scaler}
    start = _begin(checkpoint, state, ranks)
    watch, pace = Watch(checkpoint, start), Pace(batch)
    module.train()
    with (
        synchronised(module, ranks),
        compiled(module, config.compile),
        closing(pace.timed(samples.ahead(start, config.steps, drawing_threads(device)))) as batches,
    ):
        forward = _forward(module, step, ranks)
        bar = progress(range(start, config.steps), name, "step", total=config.steps, done=start, hidden=not ranks.first)
        for number in bar:
            for group in optimizer.param_groups:
                group["lr"] = config.lr * rate(number, config) * group["share"]
            optimizer.zero_grad(set_to_none=True)
            terms = _gradients(forward, batches, number, samples, scaler)
            scaler.unscale_(optimizer)
            norm = nn.utils.clip_grad_norm_(module.parameters(), config.clip_norm)
            # The scaler of fp16 lowers its scale until gradients are finite, so theirs may well not be for a while.
            watch.see(number, terms if scaler.is_enabled() else terms | {"gradient": norm})
            told = number % LOG_EVERY == 0 or number + 1 == config.steps
            saved = checkpoint is not None and (number + 1) % config.checkpoint_every == 0
            looked = device.type == "cpu" or told or saved  # elsewhere a look at each step would hold up the device
            if looked:
                watch.check()
            scaler.step(optimizer)
            scaler.update()
            if looked and scaler.is_enabled():
                watch.check_scale(number, scaler.get_scale())
            average.update_parameters(module)
            pace.step()
            if told and ranks.first:
                values = {key: float(value) for key, value in terms.items()} | pace.report()
                values["lr"] = optimizer.param_groups[0]["lr"]
                log({f"{name}/{key}": value for key, value in values.items()}, step=number)
                bar.set_postfix_str(f"loss {values['loss']:.4f}, {values['images_per_s']:.1f} images/s", refresh=False)
            if checkpoint and saved:
                if ranks.first:
                    save(checkpoint, number + 1, state)
                watch.kept = number + 1
    if config.ema_decay > 0:
        module.load_state_dict(average.module.state_dict())
    module.eval()


def _begin(checkpoint: Path | None, state: Mapping[str, Stateful], ranks: Ranks) -> int:
    """The step to go on with."""
    if checkpoint is None:
        return 0
    if ranks.first:
        tell_of_others(checkpoint)
    start = restore(checkpoint, state)
    if int(ranks.total(torch.tensor(start))) != start * ranks.world_size:
        raise InputError(f"not all processes find {checkpoint}: run them in one directory that all machines see.")
    return start


class _Losses(nn.Module):
    """The step as a module, so that `DistributedDataParallel` can wrap it around all that learns."""

    def __init__(self, module: nn.Module, step: Step[Any]) -> None:
        super().__init__()
        self.module, self.step = module, step

    def forward(self, batch: Any, number: int, rng: np.random.Generator) -> dict[str, Tensor]:
        terms = self.step(batch, number, rng)
        # What the loss does not depend on gets no gradient, and must not look as if it did.
        return {name: value if name == "loss" else value.detach() for name, value in terms.items()}


def _forward(module: nn.Module, step: Step[Any], ranks: Ranks) -> nn.Module:
    losses = _Losses(module, step)
    if ranks.world_size == 1:
        return losses
    # Not every step uses every parameter: a mask decoder has heads that take turns.
    return DistributedDataParallel(losses, find_unused_parameters=True, forward_sync_buffers=False)


def _gradients(
    forward: nn.Module, batches: Iterator[Any], number: int, samples: Samples[Any], scaler: torch.amp.GradScaler
) -> dict[str, Tensor]:
    """Leave the gradient of the whole batch's loss in the parameters; gives the terms of the whole batch's loss.

    Each part's loss is a mean, and counts by its weight. The sum of all weights is known only after the last part, so
    gradients are first divided by what the first part makes it out to be; with one part that is the sum already.
    """
    sizes, ranks = samples.sizes(), samples.ranks
    guess = sums = torch.zeros(())
    for place, size in enumerate(sizes):
        last = place + 1 == len(sizes)
        with nullcontext() if last or ranks.world_size == 1 else forward.no_sync():  # type: ignore[operator]
            terms = forward(next(batches), number, step_generator(samples.seed, number))
            loss = terms["loss"]
            weight = torch.as_tensor(terms.pop("weight", size)).detach().to(loss.device, torch.float64)
            if place == 0:
                guess = _positive(ranks.total(weight) * len(sizes))
            scaler.scale(loss * (weight * ranks.world_size / guess)).backward()
        found = torch.stack([weight, *(weight * value.detach() for value in terms.values())])
        sums = found if place == 0 else sums + found
    total, *means = ranks.total(sums)
    if len(sizes) > 1:
        for parameter in forward.parameters():
            if parameter.grad is not None:
                parameter.grad *= (guess / _positive(total)).to(parameter.grad)
    return {name: value / _positive(total) for name, value in zip(terms, means, strict=True)}


def _positive(weight: Tensor) -> Tensor:
    """What can be divided by: where nothing was counted, everything summed over it is 0 too."""
    return torch.where(weight > 0, weight, 1)


def _optimizer(module: nn.Module, config: OptimizerConfig, lr_shares: Mapping[str, float]) -> torch.optim.Optimizer:
    groups = dict[tuple[float, float], list[nn.Parameter]]()
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            decay = 0.0 if parameter.ndim <= 1 or name.endswith(_NOT_DECAYED) else config.weight_decay
            share = next((share for start, share in lr_shares.items() if name.startswith(start)), 1.0)
            groups.setdefault((decay, share), []).append(parameter)
    # The full rate comes first: it is the one that is logged.
    ordered = sorted(groups.items(), key=lambda group: group[0][1], reverse=True)
    return torch.optim.AdamW(
        [{"params": own, "weight_decay": decay, "share": share} for (decay, share), own in ordered],
        lr=config.lr,
        betas=(0.9, 0.999),
    )
