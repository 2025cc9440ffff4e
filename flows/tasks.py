"""A stage as a Prefect task, on this machine or on a worker; the final state's message is a one-line outcome."""

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
"""Retries of a stage that fails other than by bad input."""
BAD_INPUT, REFUSED = "BadInput", "Refused"
"""Names of final states: a failed one, and a completed one whose result is a refusal."""


def _should_retry(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether to retry: not with the same bad input. Stopped stages are cancelled and not retried either."""
    return state.name != BAD_INPUT


def _not_empty_traceback(record: logging.LogRecord) -> bool:
    """Filter out the empty traceback that Prefect logs before the reason of a failed task."""
    return record.exc_info != (None, None, None)


logging.getLogger("prefect.task_runs").addFilter(_not_empty_traceback)


@task(
    task_run_name="{target}",
    cache_policy=NO_CACHE,
    retries=RETRIES,
    retry_delay_seconds=5,
    retry_condition_fn=_should_retry,
)
def repro(target: str, result: Path, environment: Mapping[str, str], stages: dvc.Stages) -> State[None]:
    """Run one DVC stage, which writes to ``result``, unless it is up to date. DVC decides what is stale."""
    say = get_run_logger().info
    return _final_state(target, result, lambda: stages.repro(target, environment, say))


@task(
    task_run_name="{target} by a worker",
    cache_policy=NO_CACHE,
    retries=RETRIES,
    retry_delay_seconds=5,
    retry_condition_fn=_should_retry,
)
def repro_elsewhere(
    target: str, result: Path, deps: Sequence[str], environment: Mapping[str, str], stages: dvc.Stages, parent: str
) -> State[None]:
    """Run one DVC stage on a worker, unless it is up to date, and pull its result from DVC's remote."""
    say = get_run_logger().info

    def run() -> None:
        if not stages.is_up_to_date(target):
            remote.hand_over(stages, target, deps, parent, say)
        # If the remote lacks the result, the stage must fail instead of running on this machine.
        stages.repro(target, {**environment, RESTORE_ONLY: "1"}, say, pull=True)

    return _final_state(target, result, run)


def _final_state(target: str, result: Path, run: Callable[[], None]) -> State[None]:
    """Final state of a task. Failures are returned, since Prefect would log raised exceptions with a traceback."""
    try:
        run()
        refusal = Card.read(result).refusal
    except dvc.StoppedError as error:
        return Cancelled(message=str(error))
    except (dvc.BadInputError, InputError) as error:
        return Failed(name=BAD_INPUT, message=str(error))
    except dvc.StageFailedError as error:
        return Failed(message=str(error))
    return Completed(name=REFUSED, message=f"{target}: refused by {refusal}") if refusal else Completed()
