"""Measuring several functions under the same conditions: in turns, a few calls each, several times over."""

from collections.abc import Callable, Sequence
from math import ceil

from pipeline.bench.settings import Settings
from pipeline.progress import counter
from pipeline.timing import Stopwatch, Timing


def measure_in_turns(functions: Sequence[Callable[[], object]], settings: Settings) -> list[Timing]:
    """Time each function in every round; percentiles are over the samples of all rounds.

    A turn begins with calls that do not count: they bring back caches and threads that others used meanwhile.
    """
    stopwatches = [Stopwatch(function, max_foreign_load=settings.max_foreign_load) for function in functions]
    with counter("measure", "turn", settings.rounds * len(functions)) as bar:
        for turn in range(settings.rounds):
            goal = ceil(settings.runs * (turn + 1) / settings.rounds)
            for function, stopwatch in zip(functions, stopwatches, strict=True):
                for _ in range(settings.warmup if turn == 0 else min(1, settings.warmup)):
                    function()
                stopwatch.gather(goal)
                bar.update()
    return [stopwatch.timing(settings.runs) for stopwatch in stopwatches]
