"""Bring every stage up to date, one after another, and register the best model."""

import argparse
import sys
from collections.abc import Sequence
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.tasks import Task

from flows import dvc
from pipeline import promote, tracking
from pipeline.config import read_params
from pipeline.errors import InputError
from pipeline.process import exit_code, raise_on_signals
from pipeline.stage import ARTIFACTS, listed
from pipeline.stages import STAGES

RETRIES = 1
"""A stage that fails by a fault, not by bad input, is tried once more."""


def _may_help(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether trying again may help: not with the same bad input."""
    try:
        state.result()
    except dvc.BadInputError:
        return False
    except Exception:  # noqa: BLE001 - whatever it was, it is tried again
        return True
    return False


@task(
    task_run_name="{target}",
    cache_policy=NO_CACHE,
    retries=RETRIES,
    retry_delay_seconds=5,
    retry_condition_fn=_may_help,
)
def repro(target: str, parent: str) -> None:
    """Run one DVC stage unless it is up to date. DVC, not Prefect, decides what is stale."""
    dvc.repro(target, {tracking.PARENT_RUN: parent}, get_run_logger().info)


@task(cache_policy=NO_CACHE)
def register() -> str:
    """Register the best model as challenger."""
    return promote.register()


@flow(validate_parameters=False)
def release(students: list[str] | None = None) -> list[dict[str, Any]]:
    """Run all stages for ``students`` (default: all of params.yaml) and register the best of them.

    Returns:
        The rows of the leaderboard.

    Raises:
        InputError: params.yaml does not list one of ``students``.
    """
    params = chosen(read_params(), students)
    with tracking.parent_run("release") as parent:
        for stage in STAGES:
            for keys in stage.repetitions(params):
                repro(stage.target(keys), parent.run)
                parent.adopt(stage, params, keys)
        rows = promote.leaderboard()
        create_table_artifact(key="leaderboard", table=rows, description="Teacher and students on the validation split")
        get_run_logger().info(register())
    return rows


def chosen(params: dict[str, Any], students: Sequence[str] | None) -> dict[str, Any]:
    """``params`` with only some of its students.

    Raises:
        InputError: params.yaml does not list one of them.
    """
    known = listed(params, "students")
    for student in students or ():
        if student not in known:
            raise InputError(f"unknown student {student!r}: `students` of params.yaml lists {', '.join(known)}.")
    return params | {"students": list(students or known)}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the flow, then say what came out and where to look at it."""
    parser = argparse.ArgumentParser(prog="python -m flows.release", description="Run all stages as one Prefect flow.")
    parser.add_argument("--students", help="some of those in params.yaml, as A,B (default: all)")
    students = parser.parse_args(argv).students
    raise_on_signals()
    try:
        rows = release([name.strip() for name in students.split(",")] if students else None)
    except (InputError, dvc.BadInputError) as error:
        return _say(f"error: {error}", 2)
    except dvc.StageFailedError as error:
        return _say(f"error: {error}", 1)
    except KeyboardInterrupt as interrupt:
        return _say(
            "error: the flow was stopped; `python -m flows.release` goes on where it was.", exit_code(interrupt)
        )
    from pipeline.compare.table import leaderboard_text  # with it come plotting libraries, which a flow can do without

    print(f"\n{leaderboard_text(rows)}\n")
    print(f"report          {ARTIFACTS / 'compare' / 'report.html'}")
    print("MLflow pages    mlflow server --host 127.0.0.1 --backend-store-uri sqlite:///mlflow.db")
    print('Prefect pages   PREFECT_HOME="$PWD/.prefect" prefect server start --host 127.0.0.1')
    return 0


def _say(line: str, code: int) -> int:
    print(line, file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
