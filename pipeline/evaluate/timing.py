"""How long a function takes, and whether the machine was quiet meanwhile.

A latency measured beside other work says little: on a busy machine the same forward pass takes 2 to 8 times as long.
So samples are gathered in short windows, and a window counts only if other processes used little of the processors
during it. That is read from ``/proc/stat``, which ticks every 10 ms: a window is long enough for a tick to be a small
part of it, and holds many calls of a quick function. Time stolen by other guests of the host counts as foreign.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

Clock = Callable[[Callable[[], object]], float]
"""Calls a function once and gives the seconds it took."""

_STAT = Path("/proc/stat")
_TICKS_PER_S = 100
"""USER_HZ: what the kernel counts in towards programs, on every Linux architecture in use."""
_WINDOW_S = 0.2
_PATIENCE = 4
"""Samples are taken for at most this many times the calls, or windows' worth of them, that were asked for."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Durations of one function. Percentiles interpolate linearly."""

    median_ms: float
    p90_ms: float
    p95_ms: float
    spread_ms: float
    """Distance between the quartiles: where the middle half of the samples lies."""
    samples: int
    """Calls that count."""
    foreign_load: float | None
    """Mean share of all processors that others used while the samples were taken; None where it cannot be known."""
    guarded: bool
    """Whether the samples were all taken while the machine was quiet; if not, all that were taken count."""


@dataclass(frozen=True)
class _Window:
    durations_s: list[float]
    foreign_load: float | None

    def quiet(self, max_foreign_load: float) -> bool:
        return self.foreign_load is not None and self.foreign_load <= max_foreign_load


def wall(function: Callable[[], object]) -> float:
    """Time by the processor's clock. ``function`` must have finished its work when it returns."""
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def cuda_events(function: Callable[[], object]) -> float:
    """Time between two events on the current CUDA stream, around what ``function`` puts on it; waits for the second."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    function()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


class Stopwatch:
    """Gathers durations of one function in one turn or several, so that others can be measured in between.

    Args:
        function: What is timed.
        max_foreign_load: Share of all processors that other processes may use, in [0, 1].
        clock: `wall` or `cuda_events`.
    """

    def __init__(self, function: Callable[[], object], *, max_foreign_load: float, clock: Clock = wall) -> None:
        self._function, self._clock = function, clock
        self._max_foreign_load = max_foreign_load
        self._windows = list[_Window]()
        self._accepted, self._taken = 0, 0

    def gather(self, goal: int) -> None:
        """Call until ``goal`` samples in all, those of earlier turns among them, fell into quiet windows."""
        while self._accepted < goal and self._taken < _PATIENCE * goal:
            window = _window(self._function, goal - self._accepted, self._clock)
            self._windows.append(window)
            self._taken += len(window.durations_s)
            self._accepted += len(window.durations_s) if window.quiet(self._max_foreign_load) else 0

    def timing(self, goal: int) -> Timing:
        """What was gathered: the quiet windows alone, if they hold ``goal`` samples.

        Raises:
            ValueError: Nothing was gathered.
        """
        if not self._taken:
            raise ValueError("a measurement needs at least 1 run, not 0")
        guarded = self._accepted >= goal
        quiet = [window for window in self._windows if window.quiet(self._max_foreign_load)]
        return _summary(quiet if guarded else self._windows, guarded)


def measure(
    function: Callable[[], object], *, warmup: int, runs: int, max_foreign_load: float, clock: Clock = wall
) -> Timing:
    """Time calls of ``function`` until ``runs`` of them fell into quiet windows.

    Args:
        function: What is timed.
        warmup: Calls before the first that is timed.
        runs: Samples wanted, at least 1.
        max_foreign_load: Share of all processors that other processes may use, in [0, 1].
        clock: `wall` or `cuda_events`.

    Raises:
        ValueError: ``runs`` is less than 1.
    """
    if runs < 1:
        raise ValueError(f"a measurement needs at least 1 run, not {runs}")
    for _ in range(warmup):
        function()
    stopwatch = Stopwatch(function, max_foreign_load=max_foreign_load, clock=clock)
    stopwatch.gather(runs)
    return stopwatch.timing(runs)


def _window(function: Callable[[], object], at_most: int, clock: Clock) -> _Window:
    """Call until the window is full, and at least once."""
    durations = list[float]()
    busy, own, begin = _busy(), time.process_time(), time.perf_counter()
    while len(durations) < at_most and (not durations or time.perf_counter() - begin < _WINDOW_S):
        durations.append(clock(function))
    wall = time.perf_counter() - begin
    own, after = time.process_time() - own, _busy()
    if busy is None or after is None:
        return _Window(durations, None)
    foreign = after[0] - busy[0] - own
    return _Window(durations, min(1.0, max(0.0, foreign / (wall * after[1]))) if wall else 0.0)


def _busy() -> tuple[float, int] | None:
    """Seconds that all processors together were not idle, and how many there are; None where there is no /proc/stat."""
    try:
        lines = _STAT.read_text().splitlines()
    except OSError:
        return None
    # user nice system idle iowait irq softirq steal; what guests used is in user already.
    ticks = [int(field) for field in lines[0].split()[1:9]]
    processors = sum(line.startswith("cpu") for line in lines) - 1
    return (sum(ticks) - sum(ticks[3:5])) / _TICKS_PER_S, processors


def _summary(windows: list[_Window], guarded: bool) -> Timing:
    samples_ms = 1000 * np.array([duration for window in windows for duration in window.durations_s])
    lower, median, upper, p90, p95 = (float(v) for v in np.percentile(samples_ms, [25, 50, 75, 90, 95]))
    loads = [(w.foreign_load, len(w.durations_s)) for w in windows if w.foreign_load is not None]
    load = math.fsum(load * n for load, n in loads) / sum(n for _, n in loads) if loads else None
    return Timing(
        median_ms=median,
        p90_ms=p90,
        p95_ms=p95,
        spread_ms=upper - lower,
        samples=len(samples_ms),
        foreign_load=load,
        guarded=guarded,
    )
