"""A stage as a task of Prefect: run here, or by a worker elsewhere. Its last state tells in one line how it ended."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from prefect import get_run_logger, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.states import Cancelled, Completed, Failed
from prefect.tasks import Task

from flows import dvc, remote
from pipeline.core.artifact import Card
from pipeline.core.errors import InputError
from pipeline.core.stage import RESTORE_ONLY

RETRIES = 1
"""A stage that fails by a fault, not by bad input, is tried once more."""
BAD_INPUT, REFUSED = "BadInput", "Refused"
"""Names of last states: of a failed one, and of a completed one whose result is a refusal."""


def _may_help(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether trying again may help: not with the same bad input. What was stopped is cancelled and not tried again."""
    return state.name != BAD_INPUT


def _tells_something(record: logging.LogRecord) -> bool:
    """Whether a line is not Prefect's traceback of nothing, which comes before the line that says why a task failed."""
    return record.exc_info != (None, None, None)


logging.getLogger("prefect.task_runs").addFilter(_tells_something)


@task(
    task_run_name="{target}",
    cache_policy=NO_CACHE,
    retries=RETRIES,
    retry_delay_seconds=5,
    retry_condition_fn=_may_help,
)
def repro(target: str, place: Path, environment: Mapping[str, str], stages: dvc.Stages) -> State[None]:
    """Run one DVC stage, whose result is at ``place``, unless it is up to date. DVC decides what is stale."""
    say = get_run_logger().info
    return _ended(target, place, lambda: stages.repro(target, environment, say))


@task(
    task_run_name="{target} by a worker",
    cache_policy=NO_CACHE,
    retries=RETRIES,
    retry_delay_seconds=5,
    retry_condition_fn=_may_help,
)
def repro_elsewhere(
    target: str, place: Path, deps: Sequence[str], environment: Mapping[str, str], stages: dvc.Stages, parent: str
) -> State[None]:
    """Have a worker run one DVC stage, unless it is up to date, and take its result from DVC's remote."""
    say = get_run_logger().info

    def act() -> None:
        if not stages.is_up_to_date(target):
            remote.hand_over(stages, target, deps, parent, say)
        # Should the result not have come back after all, it must not be made here unasked.
        stages.repro(target, {**environment, RESTORE_ONLY: "1"}, say, pull=True)

    return _ended(target, place, act)


def _ended(target: str, place: Path, act: Callable[[], None]) -> State[None]:
    """The last state of a task; an exception would be told with a traceback through Prefect, which helps nobody."""
    try:
        act()
        refusal = Card.read(place).refusal
    except dvc.StoppedError as error:
        return Cancelled(message=str(error))
    except (dvc.BadInputError, InputError) as error:
        return Failed(name=BAD_INPUT, message=str(error))
    except dvc.StageFailedError as error:
        return Failed(message=str(error))
    return Completed(name=REFUSED, message=f"{target}: refused by {refusal}") if refusal else Completed()
