"""Monitoring of a training run: non-finite values, throughput, and time spent waiting for data."""

import time
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

BatchT = TypeVar("BatchT")

_LEAST_SCALE = 2.0**-10
"""Lowest fp16 gradient scale accepted; it starts at 2^16. A scale below 1 means that gradients exceed fp16's range."""


class Watch:
    """Detects the first non-finite value.

    Args:
        checkpoint: Path of the last good state, for the error message.
        saved_steps: Completed steps at the last checkpoint; 0 if there is none.
    """

    def __init__(self, checkpoint: Path | None, saved_steps: int) -> None:
        self._checkpoint = checkpoint
        self.saved_steps = saved_steps
        self._pending = list[tuple[int, list[str], Tensor]]()

    def record(self, number: int, values: Mapping[str, Tensor]) -> None:
        """Record a step's values without synchronising the device."""
        finite = torch.stack([value.detach().isfinite() for value in values.values()])
        self._pending.append((number, list(values), finite))

    def check(self) -> None:
        """Check all values recorded since the last check.

        Raises:
            FloatingPointError: A value is not finite.
        """
        for number, names, finite in self._pending:
            bad = [name for name, good in zip(names, finite.tolist(), strict=True) if not good]
            if bad:
                raise FloatingPointError(
                    f"step {number}: {', '.join(bad)} {'is' if len(bad) == 1 else 'are'} not finite; "
                    f"{self._last_state()}. Lower optimizer.lr, or check the data of that step."
                )
        self._pending.clear()

    def check_scale(self, number: int, scale: float) -> None:
        """Check the fp16 gradient scale. Each step with a non-finite gradient is skipped and halves it.

        Raises:
            FloatingPointError: The scale is so low that training cannot continue.
        """
        if scale < _LEAST_SCALE:
            raise FloatingPointError(
                f"step {number}: the fp16 gradient has not been finite for many steps, which were skipped, at any "
                f"scale down to {scale:g}; {self._last_state()}. Set optimizer.autocast to bf16 or none."
            )

    def _last_state(self) -> str:
        if self._checkpoint is None or not self.saved_steps:
            return "no checkpoint was saved before it"
        return f"the last good state, after {self.saved_steps} steps, is in {self._checkpoint}"


class Pace:
    """Measures training throughput between reports.

    Args:
        batch: Images per step.
    """

    def __init__(self, batch: int) -> None:
        self._batch = batch
        self._since, self._steps, self._waited_s = time.perf_counter(), 0, 0.0

    def timed(self, batches: Iterator[BatchT]) -> Generator[BatchT, None, None]:
        """Pass batches through, counting the time spent waiting for each."""
        while True:
            requested = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._waited_s += time.perf_counter() - requested
            yield batch

    def step(self) -> None:
        """Count a completed step."""
        self._steps += 1

    def report(self) -> dict[str, float]:
        """``images_per_s`` and ``waiting_share`` since the last report."""
        now = time.perf_counter()
        passed = now - self._since
        report = {"images_per_s": self._batch * self._steps / passed, "waiting_share": self._waited_s / passed}
        self._since, self._steps, self._waited_s = now, 0, 0.0
        return report
