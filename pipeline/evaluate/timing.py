"""Time a function, and check that the machine is idle meanwhile.

On a busy machine the same forward pass takes 2 to 8 times as long. Samples are therefore taken in short windows, and a
window is accepted only if other processes used little CPU time during it. That is read from ``/proc/stat``, which ticks
every 10 ms: a window is much longer than a tick and holds many calls of a fast function. Time stolen by other guests of
the host counts as foreign load.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

Clock = Callable[[Callable[[], object]], float]
"""Calls a function once and returns the elapsed seconds."""

_STAT = Path("/proc/stat")
_TICKS_PER_S = 100
"""USER_HZ, the unit of ``/proc/stat`` on every Linux architecture in use."""
_WINDOW_S = 0.2
_PATIENCE = 4
"""Sampling stops after this multiple of the requested samples."""


@dataclass(frozen=True, kw_only=True)
class Timing:
    """Durations of one function. Percentiles interpolate linearly."""

    median_ms: float
    p90_ms: float
    p95_ms: float
    spread_ms: float
    """Interquartile range."""
    samples: int
    """Number of accepted samples."""
    foreign_load: float | None
    """Mean share of all CPUs that other processes used during the samples; None if it is unknown."""
    guarded: bool
    """Whether enough samples fell into quiet windows; if not, the statistics are over all samples."""


@dataclass(frozen=True)
class _Window:
    durations_s: list[float]
    foreign_load: float | None

    def quiet(self, max_foreign_load: float) -> bool:
        return self.foreign_load is not None and self.foreign_load <= max_foreign_load


def wall(function: Callable[[], object]) -> float:
    """Wall-clock seconds of one call. ``function`` must have finished its work when it returns."""
    begin = time.perf_counter()
    function()
    return time.perf_counter() - begin


def cuda_events(function: Callable[[], object]) -> float:
    """Seconds between CUDA events around the work that ``function`` enqueues on the current stream; synchronizes."""
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    function()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / 1000


class Stopwatch:
    """Samples durations of one function over one or more turns, so that turns of several functions can alternate.

    Args:
        function: The function to time.
        max_foreign_load: Largest share of all CPUs that other processes may use, in [0, 1].
        clock: `wall` or `cuda_events`.
    """

    def __init__(self, function: Callable[[], object], *, max_foreign_load: float, clock: Clock = wall) -> None:
        self._function, self._clock = function, clock
        self._max_foreign_load = max_foreign_load
        self._windows = list[_Window]()
        self._accepted, self._taken = 0, 0

    def gather(self, goal: int) -> None:
        """Sample until ``goal`` samples, including those of earlier turns, fell into quiet windows."""
        while self._accepted < goal and self._taken < _PATIENCE * goal:
            window = _window(self._function, goal - self._accepted, self._clock)
            self._windows.append(window)
            self._taken += len(window.durations_s)
            self._accepted += len(window.durations_s) if window.quiet(self._max_foreign_load) else 0

    def timing(self, goal: int) -> Timing:
        """Statistics of the quiet windows if they hold ``goal`` samples, else of all windows.

        Raises:
            ValueError: No sample was taken.
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
        function: The function to time.
        warmup: Untimed calls before the first sample.
        runs: Number of samples, at least 1.
        max_foreign_load: Largest share of all CPUs that other processes may use, in [0, 1].
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
    """Sample for one window's length, at least once and at most ``at_most`` times."""
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
    """Busy seconds summed over all CPUs, and the number of CPUs; None without /proc/stat."""
    try:
        lines = _STAT.read_text().splitlines()
    except OSError:
        return None
    # user nice system idle iowait irq softirq steal; user already includes guest time.
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
