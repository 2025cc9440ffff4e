"""The one training loop: optimizer, schedule, averaged weights, checkpoints. What is learned is the caller's function.

Everything random in a step comes from a generator seeded by the run's seed and the step's number. So a step needs no
history, and a run that is killed and started again goes on as if nothing had happened.
"""

import hashlib
import math
import os
import pickle
import struct
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Annotated, TypeVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from pipeline.config import Config
from pipeline.errors import InputError
from pipeline.log import Log
from pipeline.progress import progress

BatchT = TypeVar("BatchT")

Draw = Callable[[int, np.random.Generator], BatchT]
"""``draw(number, generator)`` makes the batch of one step; runs in a thread while the step before is computed."""

Step = Callable[[BatchT, int, np.random.Generator], Mapping[str, Tensor]]
"""``step(batch, number, generator)`` gives named losses; ``loss`` is the one to minimise."""

_NOT_DECAYED = ("attention_biases", "pos_embed", "position")
"""What has more than one dimension and is no matrix or kernel."""

LOG_EVERY = 20
SAVE_EVERY_S = 30.0
CHECKPOINTS = Path(".checkpoints")
"""Where interrupted runs wait to be continued; known to neither git nor DVC."""


class OptimizerConfig(Config):
    """How long and how fast to learn."""

    steps: Annotated[int, Field(ge=1)]
    lr: Annotated[float, Field(gt=0)]
    """Peak learning rate."""
    warmup_steps: Annotated[int, Field(ge=0)]
    cooldown_steps: Annotated[int, Field(ge=0)]
    """Steps at the end in which the rate falls linearly to 0; it is constant in between."""
    weight_decay: Annotated[float, Field(ge=0)]
    """Applied to matrices and kernels, not to norms, biases and positions."""
    clip_norm: Annotated[float, Field(gt=0)]
    ema_decay: Annotated[float, Field(ge=0, lt=1)]
    """Of the averaged weights that are kept in the end; 0 keeps the last weights."""
    seed: Annotated[int, Field(ge=0)]


def device_of(name: str, where: str) -> torch.device:
    """The device of that name.

    Args:
        name: As torch names it: ``cpu``, ``cuda``, ``cuda:1``.
        where: What of params.yaml named it, for the error.

    Raises:
        InputError: There is none on this machine.
    """
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{where} is {name!r}, which is not to be had here ({reason}): set it to cpu.") from None


def has_bf16(device: torch.device) -> bool:
    """Whether the device has instructions for bf16."""
    if device.type == "cpu":  # torch has no public name for this
        return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())
    return device.type != "cuda" or torch.cuda.is_bf16_supported(including_emulation=False)


def autocast(device: torch.device, *, bf16: bool) -> torch.autocast:
    """Mixed precision for a forward pass, if ``bf16`` asks for it and the device has instructions for it.

    Elsewhere it stays float32: a processor that imitates bf16 takes longer than with float32.
    """
    return torch.autocast(device.type, torch.bfloat16, enabled=bf16 and has_bf16(device))


def fit(
    module: nn.Module,
    draw: Draw[BatchT],
    step: Step[BatchT],
    config: OptimizerConfig,
    *,
    log: Log,
    name: str,
    checkpoint: Path | None = None,
) -> None:
    """Train ``module``'s parameters that require gradients, and leave the averaged weights in it.

    Args:
        module: Changed in place.
        draw: Makes the batch of one step.
        step: Computes its losses.
        config: The recipe.
        log: Gets each loss as ``<name>/<loss>`` every `LOG_EVERY` steps.
        name: Shown on the progress bar.
        checkpoint: File to go on from where it exists, renewed twice a minute. The caller removes it when the result is
                on the disk, so that a full disk at the end costs no training.

    Raises:
        FloatingPointError: A loss is not finite.
        InputError: The checkpoint is damaged or another version's.
    """
    optimizer = _optimizer(module, config)
    average = AveragedModel(module, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay), use_buffers=True)
    start = _restore(checkpoint, module, optimizer, average) if checkpoint else 0
    module.train()
    saved = time.monotonic()
    batches = _ahead(draw, config, start)
    bar = progress(batches, name, "step", total=config.steps, done=start)
    for number, batch in bar:
        for group in optimizer.param_groups:
            group["lr"] = config.lr * rate(number, config)
        losses = step(batch, number, np.random.default_rng((config.seed, number, 1)))
        optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        norm = nn.utils.clip_grad_norm_(module.parameters(), config.clip_norm)
        optimizer.step()
        average.update_parameters(module)
        if number % LOG_EVERY == 0 or number == config.steps - 1:
            values = {f"{name}/{key}": float(value.detach()) for key, value in losses.items()}
            _check_finite(values, number, checkpoint)
            log(values | {f"{name}/lr": optimizer.param_groups[0]["lr"]}, step=number)
            bar.set_postfix(loss=f"{values[f'{name}/loss']:.4f}", refresh=False)
        if checkpoint and time.monotonic() - saved > SAVE_EVERY_S:
            found = {"loss": float(losses["loss"].detach()), "gradient": float(norm)}
            _check_finite({f"{name}/{key}": value for key, value in found.items()}, number, checkpoint)
            _save(checkpoint, number + 1, module, optimizer, average)
            saved = time.monotonic()
    if config.ema_decay > 0:
        module.load_state_dict(average.module.state_dict())
    module.eval()


def _ahead(draw: Draw[BatchT], config: OptimizerConfig, start: int) -> Iterator[tuple[int, BatchT]]:
    """Each step's number and batch, the next one being drawn meanwhile."""

    def submit(number: int) -> Future[BatchT]:
        return thread.submit(draw, number, np.random.default_rng((config.seed, number, 0)))

    if start >= config.steps:
        return
    with ThreadPoolExecutor(1) as thread:
        coming = submit(start)
        for number in range(start, config.steps):
            batch = coming.result()
            if number + 1 < config.steps:
                coming = submit(number + 1)
            yield number, batch


def checkpoint_of(name: str, *identity: object) -> Path:
    """The checkpoint of a run, by everything that decides its result: another recipe or input never continues it."""
    key = hashlib.sha256("\n".join(map(str, identity)).encode()).hexdigest()[:16]
    return CHECKPOINTS / f"{name}-{key}.pt"


def epoch_indices(count: int, batch: int, number: int, seed: int) -> list[int]:
    """The samples of one step, in an order that visits each of ``count`` once before any comes again."""
    places = range(number * batch, (number + 1) * batch)
    orders = {
        epoch: np.random.default_rng((seed, 1 << 20, epoch)).permutation(count)
        for epoch in range(places[0] // count, places[-1] // count + 1)
    }
    return [int(orders[place // count][place % count]) for place in places]


def rate(number: int, config: OptimizerConfig) -> float:
    """Share of the peak learning rate at a step: linear warm-up, constant, linear cool-down."""
    up = (number + 1) / max(1, config.warmup_steps)
    down = (config.steps - number) / max(1, config.cooldown_steps)
    return min(1.0, up, down)


def _optimizer(module: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    decayed, free = list[nn.Parameter](), list[nn.Parameter]()
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            (free if parameter.ndim <= 1 or name.endswith(_NOT_DECAYED) else decayed).append(parameter)
    return torch.optim.AdamW(
        [{"params": decayed, "weight_decay": config.weight_decay}, {"params": free, "weight_decay": 0.0}],
        lr=config.lr,
        betas=(0.9, 0.999),
    )


def _check_finite(values: Mapping[str, float], number: int, checkpoint: Path | None) -> None:
    bad = [key for key, value in values.items() if not math.isfinite(value)]
    if bad:
        kept = f"the last good state is {checkpoint}" if checkpoint and checkpoint.exists() else "nothing was kept"
        raise FloatingPointError(f"step {number}: {', '.join(bad)} is not finite; {kept}. Lower the learning rate.")


def _save(path: Path, done: int, module: nn.Module, optimizer: torch.optim.Optimizer, average: AveragedModel) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".part")
    state = {
        "done": done,
        "module": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "average": average.state_dict(),
    }
    try:
        with draft.open("wb") as stream:  # handed only a path, torch would not say that the disk is full
            torch.save(state, stream)
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def _restore(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, average: AveragedModel) -> int:
    if not path.exists():
        return 0
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        module.load_state_dict(state["module"])
        optimizer.load_state_dict(state["optimizer"])
        average.load_state_dict(state["average"])
        return int(state["done"])
    except (pickle.UnpicklingError, struct.error, RuntimeError, ValueError, LookupError, TypeError, EOFError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path}, where an interrupted run was to go on, cannot be used ({reason}): remove it to start anew."
        ) from None
