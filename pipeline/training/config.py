"""The training loop's keys in params.yaml, and the learning rate schedule."""

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.core.config import Config
from pipeline.core.errors import InputError


class OptimizerConfig(Config):
    """How long and how fast to learn."""

    steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps; set either this or ``epochs``."""
    epochs: Annotated[float, Field(gt=0)] | None = None
    """Passes over the images, instead of ``steps``: the run takes ``ceil(epochs * images / batch)`` steps."""
    lr: Annotated[float, Field(gt=0)]
    """Peak learning rate."""
    schedule: Literal["trapezoid", "cosine"] = "trapezoid"
    """After the warm-up constant and then linear to 0, or half a cosine to 0."""
    warmup_steps: Annotated[int, Field(ge=0)]
    cooldown_steps: Annotated[int, Field(ge=0)] = 0
    """Steps at the end in which the rate of a trapezoid falls; 0 with a cosine, which falls all the way."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.05
    """Applied to matrices and kernels, not to norms, biases and positions."""
    clip_norm: Annotated[float, Field(gt=0)] = 1.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.9998
    """Of the averaged weights that are kept in the end; 0 keeps the last weights."""
    micro_batch: Annotated[int, Field(ge=1)] | None = None
    """Images that a process computes at once, for batches that its memory does not hold: its share of a batch is cut
    into as many parts as that takes. The same value serves any number of GPUs. Null: the whole share at once."""
    accumulate: Annotated[int, Field(ge=1)] = 1
    """A fixed number of such parts, instead of ``micro_batch``."""
    autocast: Literal["none", "bf16", "fp16"] = "bf16"
    """Forward passes in mixed precision, where the device has instructions for it."""
    compile: bool = False
    """Pass the module's forward through `torch.compile`."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 500
    """Steps after which the state is kept on the disk, so that an interrupted run can go on from there."""
    seed: Annotated[int, Field(ge=0, lt=2**64)] = 0
    num_workers: Annotated[int, Field(ge=0, le=128)] | Literal["auto"] = "auto"
    """Processes that read and prepare batches, beside each training process; results do not depend on it. 0 takes
    threads; ``auto`` is 0 on a CPU and up to 16 with a GPU, one per core but one."""

    @model_validator(mode="after")
    def _schedule_is_whole(self) -> "OptimizerConfig":
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("set exactly one of steps and epochs; null unsets a key")
        if self.schedule == "cosine" and self.cooldown_steps:
            raise ValueError("a cosine falls all the way: set cooldown_steps to 0")
        if self.micro_batch is not None and self.accumulate != 1:
            raise ValueError("micro_batch decides the number of parts: remove accumulate")
        return self

    def parts(self, batch: int, world_size: int) -> int:
        """Number of parts in which each of ``world_size`` processes computes its share of a batch."""
        if self.micro_batch is None:
            return self.accumulate
        return math.ceil(math.ceil(batch / world_size) / self.micro_batch)

    def total_steps(self, images: int, batch: int) -> int:
        """Return the number of steps of a run on ``images`` images in batches of ``batch``.

        Raises:
            InputError: The steps of ``epochs`` are fewer than those of warm-up and cool-down.
        """
        if self.epochs is None:
            return self.steps or 1
        steps = math.ceil(round(self.epochs * images / batch, 6))
        if steps < self.warmup_steps + self.cooldown_steps:
            raise InputError(
                f"epochs {self.epochs:g} of {images} images in batches of {batch} are {steps} steps, fewer than "
                f"warmup_steps {self.warmup_steps} and cooldown_steps {self.cooldown_steps} together: lower these, or "
                "raise epochs."
            )
        return steps


def rate(number: int, config: OptimizerConfig, steps: int) -> float:
    """Learning rate at step ``number`` of ``steps``, as a fraction of the peak; never 0.

    Linear warm-up, then constant with a linear cool-down, or half a cosine (Loshchilov and Hutter 2017, without
    restarts).
    """
    up = (number + 1) / max(1, config.warmup_steps)
    if config.schedule == "trapezoid":
        return min(1.0, up, (steps - number) / max(1, config.cooldown_steps))
    if up < 1:
        return up
    warmed = max(0, config.warmup_steps - 1)  # the step that reached the peak
    return (1 + math.cos(math.pi * (number - warmed) / (steps - warmed))) / 2
