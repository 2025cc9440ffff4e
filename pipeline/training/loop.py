"""The training loop: optimizer, schedule, averaged weights, checkpoints. The caller's function computes the losses.

All randomness in a step comes from generators seeded by the run's seed and the step number. A step therefore needs no
history, and a resumed run gives weights bit-identical to an uninterrupted run's.

A step may be split across the processes of ``torchrun``, and within each by gradient accumulation. Gradients and
reported losses equal those of the whole batch: each part's mean is weighted by the number of items it averages. Batch
norm covers the samples of all processes, but only one accumulated part at a time.
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
from pipeline.core.loading import Draw, loading_of
from pipeline.core.log import Log
from pipeline.core.progress import notice, progress
from pipeline.ops.precision import precision_of
from pipeline.training.batch_norm import synchronised
from pipeline.training.checkpoint import Stateful, restore, save, warn_of_others
from pipeline.training.compiling import compiled
from pipeline.training.config import OptimizerConfig, rate
from pipeline.training.samples import Samples, step_generator
from pipeline.training.watch import Pace, Watch

BatchT = TypeVar("BatchT")

Step = Callable[[BatchT, int, np.random.Generator], Mapping[str, Tensor]]
"""``step(batch, number, generator)`` returns named losses of a part of a step; ``loss`` is minimised.

An optional ``weight`` is the number of items that their means cover (prompts, cells), in any unit common to all parts
of a step; by default it is the number of samples. The generator is the same for all parts: per-sample randomness must
come from the generators passed to ``draw``, which may be included in the batch.
"""

_NOT_DECAYED = ("attention_biases", "pos_embed", "position")
"""Parameters with more than one dimension that are not matrices or kernels; excluded from weight decay."""

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
    find_unused_parameters: bool = False,
) -> None:
    """Train ``module``'s parameters that require gradients, and leave the averaged weights in it.

    Args:
        module: Changed in place.
        draw: Makes a batch, or a part of one.
        step: Computes the losses of a batch.
        config: Optimizer settings.
        count: Size of the dataset; every sample is drawn once per epoch.
        batch: Global batch size, summed over all `joined` processes.
        log: Receives each loss as ``<name>/<loss>`` every `LOG_EVERY` steps, in the first process.
        name: Label of the progress bar.
        device: Device of ``module``.
        checkpoint: File to resume from if it exists, updated every ``checkpoint_every`` steps. The caller deletes it
            once the artifact is complete (`Contents.scratch`), so that a full disk at the end loses no training.
        lr_shares: Learning rate multipliers by parameter name prefix, for pre-trained parts that should learn slower.
        find_unused_parameters: Whether a step's loss may not depend on a trained parameter, which costs several
            processes a search in every step; see `DistributedDataParallel`.

    Raises:
        FloatingPointError: A loss is not finite.
        InputError: The checkpoint is damaged or from another version, the batch has fewer samples than parts, or
            ``epochs`` are too few for warm-up and cool-down.
    """
    ranks = current()
    samples = Samples(draw, count, batch, config.parts(batch, ranks.world_size), config.seed, ranks)
    steps = _total_steps(config, count, batch, log, name, ranks)
    optimizer = _optimizer(module, config, lr_shares, device)
    average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay), use_buffers=True)
    scaler = torch.amp.GradScaler(device.type, enabled=precision_of(device, config.autocast) == "fp16")
    state: dict[str, Stateful] = {"module": module, "optimizer": optimizer, "average": average, "scaler": scaler}
    start = _begin(checkpoint, state, ranks)
    watch, pace = Watch(checkpoint, start), Pace(batch)
    loading = loading_of(draw, config.num_workers, device)
    module.train()
    with (
        synchronised(module, ranks),
        compiled(module, config.compile),
        closing(pace.timed(samples.ahead(start, steps, loading))) as batches,
    ):
        forward = _forward(module, step, ranks, find_unused_parameters)
        bar = progress(range(start, steps), name, "step", total=steps, done=start, hidden=not ranks.first)
        for number in bar:
            for group in optimizer.param_groups:
                group["lr"] = config.lr * rate(number, config, steps) * group["share"]
            optimizer.zero_grad(set_to_none=True)
            terms = _gradients(forward, batches, number, samples, scaler)
            scaler.unscale_(optimizer)
            norm = nn.utils.clip_grad_norm_(module.parameters(), config.clip_norm)
            # In fp16, non-finite gradients are expected until the scaler has lowered its scale.
            watch.record(number, terms if scaler.is_enabled() else terms | {"gradient": norm})
            logs = number % LOG_EVERY == 0 or number + 1 == steps
            saves = checkpoint is not None and (number + 1) % config.checkpoint_every == 0
            checks = device.type == "cpu" or logs or saves  # on a GPU, checking every step would stall the device
            if checks:
                watch.check()
            scaler.step(optimizer)
            scaler.update()
            if checks and scaler.is_enabled():
                watch.check_scale(number, scaler.get_scale())
            average.update_parameters(module)
            pace.step()
            if logs and ranks.first:
                values = {key: float(value) for key, value in terms.items()} | pace.report()
                values["lr"] = optimizer.param_groups[0]["lr"]
                log({f"{name}/{key}": value for key, value in values.items()}, step=number)
                bar.set_postfix_str(f"loss {values['loss']:.4f}, {values['images_per_s']:.1f} images/s", refresh=False)
            if checkpoint and saves:
                if ranks.first:
                    save(checkpoint, number + 1, state)
                watch.saved_steps = number + 1
    if config.ema_decay > 0:
        module.load_state_dict(average.module.state_dict())
    module.eval()


def _total_steps(config: OptimizerConfig, count: int, batch: int, log: Log, name: str, ranks: Ranks) -> int:
    steps = config.total_steps(count, batch)
    if config.epochs is not None and ranks.first:
        notice(f"{name}: {config.epochs:g} epochs of {count} images in batches of {batch} are {steps} steps.")
        log({f"{name}/steps": steps}, step=0)
    return steps


def _begin(checkpoint: Path | None, state: Mapping[str, Stateful], ranks: Ranks) -> int:
    """Load the checkpoint, if any, and return the first step to run."""
    if checkpoint is None:
        return 0
    if ranks.first:
        warn_of_others(checkpoint)
    start = restore(checkpoint, state)
    if int(ranks.total(torch.tensor(start))) != start * ranks.world_size:
        raise InputError(f"not all processes see {checkpoint}: run them in a directory shared by all machines.")
    return start


class _Losses(nn.Module):
    """The step as a module, so that `DistributedDataParallel` can wrap it together with the trained module."""

    def __init__(self, module: nn.Module, step: Step[Any]) -> None:
        super().__init__()
        self.module, self.step = module, step

    def forward(self, batch: Any, number: int, rng: np.random.Generator) -> dict[str, Tensor]:
        terms = self.step(batch, number, rng)
        # Only the loss is differentiated; the other terms must not appear to have gradients.
        return {name: value if name == "loss" else value.detach() for name, value in terms.items()}


def _forward(module: nn.Module, step: Step[Any], ranks: Ranks, find_unused_parameters: bool) -> nn.Module:
    losses = _Losses(module, step)
    if ranks.world_size == 1:
        return losses
    return DistributedDataParallel(
        losses,
        find_unused_parameters=find_unused_parameters,
        gradient_as_bucket_view=True,
        forward_sync_buffers=False,
    )


def _gradients(
    forward: nn.Module, batches: Iterator[Any], number: int, samples: Samples[Any], scaler: torch.amp.GradScaler
) -> dict[str, Tensor]:
    """Accumulate the gradient of the whole batch's loss in the parameters; return the whole batch's loss terms.

    Each part's loss is a mean, weighted by its weight. The sum of all weights is known only after the last part, so
    gradients are first divided by an estimate from the first part and corrected at the end; with one part the estimate
    is exact.
    """
    sizes, ranks = samples.sizes(), samples.ranks
    estimate = sums = torch.zeros(())
    for index, size in enumerate(sizes):
        last = index + 1 == len(sizes)
        with nullcontext() if last or ranks.world_size == 1 else forward.no_sync():  # type: ignore[operator]
            terms = forward(next(batches), number, step_generator(samples.seed, number))
            loss = terms["loss"]
            weight = _weight(terms.pop("weight", size), loss.device)
            if index == 0:
                estimate = _positive(ranks.total(weight) * len(sizes))
            scaler.scale(loss * (weight * ranks.world_size / estimate)).backward()
        weighted = torch.stack([weight, *(weight * value.detach() for value in terms.values())])
        sums = weighted if index == 0 else sums + weighted
    total, *means = ranks.total(sums)
    if len(sizes) > 1:
        for parameter in forward.parameters():
            if parameter.grad is not None:
                parameter.grad *= (estimate / _positive(total)).to(parameter.grad)
    return {name: value / _positive(total) for name, value in zip(terms, means, strict=True)}


def _weight(weight: Tensor | int, device: torch.device) -> Tensor:
    """A part's weight on its device, in double precision; a number is filled in there, since a copy is waited for."""
    if isinstance(weight, Tensor):
        return weight.detach().to(device, torch.float64, non_blocking=True)
    return torch.full((), weight, dtype=torch.float64, device=device)


def _positive(weight: Tensor) -> Tensor:
    """Replace 0 by 1 as a divisor: where the weight is 0, so is every weighted sum."""
    return torch.where(weight > 0, weight, 1)


def _optimizer(
    module: nn.Module, config: OptimizerConfig, lr_shares: Mapping[str, float], device: torch.device
) -> torch.optim.Optimizer:
    groups = dict[tuple[float, float], list[nn.Parameter]]()
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            decay = 0.0 if parameter.ndim <= 1 or name.endswith(_NOT_DECAYED) else config.weight_decay
            share = next((share for start, share in lr_shares.items() if name.startswith(start)), 1.0)
            groups.setdefault((decay, share), []).append(parameter)
    # The group with the full rate comes first, since its rate is logged.
    ordered = sorted(groups.items(), key=lambda group: group[0][1], reverse=True)
    return torch.optim.AdamW(
        [{"params": own, "weight_decay": decay, "share": share} for (decay, share), own in ordered],
        lr=config.lr,
        betas=(0.9, 0.999),
        fused=device.type == "cuda" or None,  # on a CPU torch's own choice, so that results stay as they are
    )
