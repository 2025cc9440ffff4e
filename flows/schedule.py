"""Which stage may start when, and what is not run because another has failed. Knows neither DVC nor what stages do."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture

from pipeline.core.stage import Keys, Stage


@dataclass(frozen=True, kw_only=True)
class Step:
    """One repetition of a stage."""

    stage: Stage
    keys: Keys
    after: frozenset[str]
    """Targets that must have ended, well or not."""
    deps: tuple[frozenset[str], ...]
    """Of each of these sets, one target must have a result: a stage that reads all repetitions takes what there is."""

    @property
    def target(self) -> str:
        """DVC's name of it."""
        return self.stage.target(self.keys)


def plan(stages: Sequence[Stage], params: Mapping[str, Any]) -> list[Step]:
    """All repetitions in an order in which they could run; one that measures time comes after all before it."""
    steps = list[Step]()
    for stage in stages:
        before = frozenset(step.target for step in steps)
        for keys in stage.repetitions(params):
            upstream = frozenset(dep.target(found) for dep, found in stage.upstream(params, keys))
            read: dict[str, set[str]] = {}
            for dep, found in stage.inputs(params, keys):
                read.setdefault(dep.name, set()).add(dep.target(found))
            deps = tuple(frozenset(targets) for targets in read.values())
            step = Step(stage=stage, keys=keys, after=before if stage.exclusive else upstream, deps=deps)
            steps.append(step)
            if stage.exclusive:
                before |= {step.target}
    return steps


def run(
    steps: Sequence[Step], at_once: int, start: Callable[[Step], PrefectFuture[Any]], elsewhere: Sequence[str] = ()
) -> Iterator[tuple[Step, State[Any] | None]]:
    """Start every step when what it waits for has ended and a slot is free; the first in order go first.

    Args:
        steps: In an order in which they could run.
        at_once: How many run here at the same time.
        start: Hands a step to Prefect.
        elsewhere: Verbs whose steps take no slot, because another machine has their work.

    Yields:
        Each step that has ended and its final state; None for one that was not started, because what it reads is
        not there.
    """
    waiting, running, results = list(steps), dict[PrefectFuture[Any], Step](), dict[str, bool]()
    ended = SimpleQueue[PrefectFuture[Any]]()
    while waiting or running:
        for step in list(waiting):
            if not step.after <= results.keys():
                continue
            if not all(any(results[target] for target in targets) for targets in step.deps):
                waiting.remove(step)
                results[step.target] = False
                yield step, None
                continue
            taken = sum(other.stage.name not in elsewhere for other in running.values())
            if step.stage.name in elsewhere or taken < at_once:
                waiting.remove(step)
                future = start(step)
                running[future] = step
                future.add_done_callback(ended.put)
        if running:
            future = ended.get()
            future.wait()  # it has ended; this fetches its state
            step = running.pop(future)
            results[step.target] = future.state.is_completed()
            yield step, future.state
