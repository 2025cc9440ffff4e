"""Interleaved measurement of several functions, so that all meet the same conditions of the machine."""

from collections.abc import Callable, Sequence
from math import ceil

from pipeline.bench.settings import Settings
from pipeline.core.progress import counter
from pipeline.evaluate.timing import Clock, Stopwatch, Timing


def measure_interleaved(functions: Sequence[tuple[Callable[[], object], Clock]], settings: Settings) -> list[Timing]:
    """Time each function, by its clock, in every round; percentiles are over the samples of all rounds.

    Each turn begins with warm-up calls, which restore caches and threads that other functions used.
    """
    limit = settings.max_foreign_load
    stopwatches = [Stopwatch(function, max_foreign_load=limit, clock=clock) for function, clock in functions]
    with counter("measure", "turn", settings.rounds * len(functions)) as bar:
        for turn in range(settings.rounds):
            goal = ceil(settings.runs * (turn + 1) / settings.rounds)
            for (function, _), stopwatch in zip(functions, stopwatches, strict=True):
                for _ in range(settings.warmup if turn == 0 else min(1, settings.warmup)):
                    function()
                stopwatch.gather(goal)
                bar.update()
    return [stopwatch.timing(settings.runs) for stopwatch in stopwatches]
