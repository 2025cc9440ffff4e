"""Scheduling of stages by their dependencies, independent of DVC and of what stages do."""

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
    """Targets that must have ended, successfully or not."""
    deps: tuple[frozenset[str], ...]
    """At least one target of each set must have a result: a stage that reads all repetitions uses those available."""

    @property
    def target(self) -> str:
        """DVC's name of the step."""
        return self.stage.target(self.keys)


def plan(stages: Sequence[Stage], params: Mapping[str, Any]) -> list[Step]:
    """All repetitions in topological order; exclusive ones, which measure time, run after all before them."""
    steps = list[Step]()
    for stage in stages:
        before = frozenset(step.target for step in steps)
        for keys in stage.repetitions(params):
            upstream = frozenset(dep.target(dep_keys) for dep, dep_keys in stage.upstream(params, keys))
            read: dict[str, set[str]] = {}
            for dep, dep_keys in stage.inputs(params, keys):
                read.setdefault(dep.name, set()).add(dep.target(dep_keys))
            deps = tuple(frozenset(targets) for targets in read.values())
            step = Step(stage=stage, keys=keys, after=before if stage.exclusive else upstream, deps=deps)
            steps.append(step)
            if stage.exclusive:
                before |= {step.target}
    return steps


def run(
    steps: Sequence[Step], at_once: int, start: Callable[[Step], PrefectFuture[Any]], elsewhere: Sequence[str] = ()
) -> Iterator[tuple[Step, State[Any] | None]]:
    """Start each step when its predecessors have ended and a slot is free, in order.

    Args:
        steps: Steps in topological order.
        at_once: Number of steps that run on this machine at the same time.
        start: Submits a step to Prefect.
        elsewhere: Verbs whose steps take no slot, because they run on another machine.

    Yields:
        Each ended step and its final state; None if it was not started because an input is missing.
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
            future.wait()  # fetches the final state
            step = running.pop(future)
            results[step.target] = future.state.is_completed()
            yield step, future.state
