"""An eye on a training: is all it computes finite, how fast is it, and does it wait for its data."""

import time
from collections.abc import Generator, Iterator, Mapping
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor

BatchT = TypeVar("BatchT")

_LEAST_SCALE = 2.0**-10
"""Of fp16 gradients; it begins at 2^16. Gradients that need less than 1 are larger than fp16's largest number."""


class Watch:
    """Notices the first value that is not finite.

    Args:
        checkpoint: Where the last good state is, for the error.
        kept: How many steps had been done when it was kept; 0 where there is none.
    """

    def __init__(self, checkpoint: Path | None, kept: int) -> None:
        self._checkpoint = checkpoint
        self.kept = kept
        self._seen = list[tuple[int, list[str], Tensor]]()

    def see(self, number: int, values: Mapping[str, Tensor]) -> None:
        """Note what a step came to; the device is not waited for."""
        finite = torch.stack([value.detach().isfinite() for value in values.values()])
        self._seen.append((number, list(values), finite))

    def check(self) -> None:
        """Look at all that was noted since the last look.

        Raises:
            FloatingPointError: Something was not finite.
        """
        for number, names, finite in self._seen:
            bad = [name for name, good in zip(names, finite.tolist(), strict=True) if not good]
            if bad:
                raise FloatingPointError(
                    f"step {number}: {', '.join(bad)} {'is' if len(bad) == 1 else 'are'} not finite; {self._good()}. "
                    "Lower optimizer.lr, or look at the data of that step."
                )
        self._seen.clear()

    def check_scale(self, number: int, scale: float) -> None:
        """Look at the scale of fp16 gradients: each step whose gradient is not finite is left out and halves it.

        Raises:
            FloatingPointError: It is so low that no scale will do.
        """
        if scale < _LEAST_SCALE:
            raise FloatingPointError(
                f"step {number}: the gradient has not been finite in fp16 for many steps, at no scale down to "
                f"{scale:g}, and nothing was learned in them; {self._good()}. Set optimizer.autocast to bf16 or none."
            )

    def _good(self) -> str:
        if self._checkpoint is None or not self.kept:
            return "no state was kept before it"
        return f"the last good state, after {self.kept} steps, is in {self._checkpoint}"


class Pace:
    """How fast a training is, from report to report.

    Args:
        batch: Images in a step.
    """

    def __init__(self, batch: int) -> None:
        self._batch = batch
        self._since, self._steps, self._waited_s = time.perf_counter(), 0, 0.0

    def timed(self, batches: Iterator[BatchT]) -> Generator[BatchT, None, None]:
        """The same batches; the time until each is there counts as waiting."""
        while True:
            asked = time.perf_counter()
            try:
                batch = next(batches)
            except StopIteration:
                return
            self._waited_s += time.perf_counter() - asked
            yield batch

    def step(self) -> None:
        """One more step was done."""
        self._steps += 1

    def report(self) -> dict[str, float]:
        """``images_per_s`` and ``waiting_share`` since the last report."""
        now = time.perf_counter()
        passed = now - self._since
        report = {"images_per_s": self._batch * self._steps / passed, "waiting_share": self._waited_s / passed}
        self._since, self._steps, self._waited_s = now, 0, 0.0
        return report
