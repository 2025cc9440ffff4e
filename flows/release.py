"""Bring every stage up to date, optionally several at once, and register the best model.

Candidates are independent: if a gate refuses one, the release completes with refusals; if one fails, everything that
does not depend on it still runs, and the release fails at the end.
"""

import os
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import typer
from prefect import flow, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.states import Completed, Failed
from prefect.task_runners import ThreadPoolTaskRunner
from pydantic import Field

from flows import clone, console, dvc, outcome, remote, schedule, tasks, temporary_server
from flows.outcome import ReleaseFailedError
from pipeline import promote, tracking
from pipeline.core import command_line, preflight
from pipeline.core.artifact import read_refusals
from pipeline.core.command_line import DEBUG_OPTION, PLAIN, Names, names
from pipeline.core.config import read_params
from pipeline.core.errors import InputError
from pipeline.core.failures import BAD_INPUT, OK, REFUSED, guarded, report
from pipeline.core.process import raise_on_signals
from pipeline.core.stage import ARTIFACTS, listed
from pipeline.stages import STAGES

WITH_REFUSALS = "CompletedWithRefusals"
"""Name of the flow's final state if gates refused candidates."""
NOT_STARTED = "NotStarted"
"""Name of the flow's final state if it could not start any stage."""
Verb = Literal["embed", "distill", "align", "build_engine", "evaluate"]
"""Stages that workers can run: those with ``gpu``."""

_COMPARISON = ARTIFACTS / "compare"
_FEW_ROWS = 4
"""Rows of a leaderboard that a failed release still prints."""


@task(cache_policy=NO_CACHE)
def register() -> str:
    """Register the best model as challenger."""
    return promote.register()


# Unlimited, since `schedule` limits the stages that run on this machine.
_THREAD_EACH: Any = ThreadPoolTaskRunner()


@flow(task_runner=_THREAD_EACH)
def release(
    students: list[str] | None = None,
    at_once: Annotated[int, Field(ge=1)] = 1,
    on_gpu: tuple[Verb, ...] = (),
) -> State[list[dict[str, Any]]]:
    """Run all stages for ``students`` (default: all of params.yaml) and register the best of them.

    Args:
        students: A subset of the students in params.yaml.
        at_once: Number of stages that may run concurrently; they share the processors. Training rounds differently with
            another number of threads, so results equal those of plain `dvc repro` to the byte only with 1.
        on_gpu: Verbs whose stages run on workers of the pool ``gpu``, for example ``build_engine``; the others run on
            this machine.

    Returns:
        The leaderboard rows, as the final state's data. If gates refused candidates, the state is named
        `WITH_REFUSALS` and its message lists them.

    Raises:
        InputError: params.yaml does not list one of ``students``, a verb cannot be handed over, or workers cannot be
            reached.
        ReleaseFailedError: Stages failed.
    """
    started = False
    try:
        params = chosen(read_params(), students)
        check_engine(params, on_gpu)
        with clone.lock():
            if on_gpu:
                remote.check_ready()
            started = True
            rows, refused = _release(params, at_once, on_gpu)
    except (InputError, dvc.StageFailedError) as error:
        return Failed(name=None if started else NOT_STARTED, message=str(error), data=error)
    return Completed(name=WITH_REFUSALS, message=refused, data=rows) if refused else Completed(data=rows)


def _release(params: dict[str, Any], at_once: int, on_gpu: Sequence[str]) -> tuple[list[dict[str, Any]], str]:
    """Run the stages; returns the leaderboard and the refused candidates."""
    steps = schedule.plan(STAGES, params)
    order = [step.target for step in steps]
    states = dict[str, State[Any] | None]()
    with tracking.parent_run("release") as parent, dvc.lock_in_order(order), dvc.Stages() as stages:
        start = _starter(params, parent.run, stages, at_once, on_gpu)
        for step, state in schedule.run(steps, at_once, start, on_gpu):
            states[step.target] = state
            if outcome.has_result(state):
                parent.adopt(step.stage, params, step.keys)
        refused = outcome.refused(steps, states)
        # The last stage is the comparison.
        rows = promote.leaderboard() if outcome.has_result(states[order[-1]]) else None
        if rows is not None:
            _publish(rows, refused)
        lines = outcome.failures(steps, states)
        if lines or rows is None:
            raise ReleaseFailedError(lines, bad_input=outcome.bad_input(steps, states), rows=rows, refused=refused)
        if any(row["role"] == "student" for row in rows):
            get_run_logger().info(register())
        else:
            get_run_logger().warning("nothing to register: all students were refused")
    return rows, refused


def _publish(rows: list[dict[str, Any]], refused: str) -> None:
    """Publish the leaderboard as a Prefect artifact."""
    from pipeline.compare.table import leaderboard_table  # imports plotting libraries, which the tasks do not need

    text = f"Teacher and students on the validation split. The report: {_COMPARISON / 'report.html'}"
    create_table_artifact(
        key="leaderboard", table=leaderboard_table(rows), description=f"{text}. {refused}".removesuffix(". ")
    )


def _starter(
    params: Mapping[str, Any], parent: str, stages: dvc.Stages, at_once: int, on_gpu: Sequence[str]
) -> Callable[[schedule.Step], PrefectFuture[Any]]:
    """Build the function that submits a step to Prefect."""
    environment = {tracking.PARENT_RUN: parent}

    def start(step: schedule.Step) -> PrefectFuture[Any]:
        stage, result = step.stage, step.stage.path(step.keys)
        if stage.name in on_gpu:
            deps = [dep.target(dep_keys) for dep, dep_keys in stage.inputs(params, step.keys)]
            return tasks.repro_elsewhere.submit(step.target, result, deps, environment, stages, parent)
        share = {} if stage.exclusive else _share(min(at_once, len(stage.repetitions(params))))
        return tasks.repro.submit(step.target, result, environment | share, stages)

    return start


def _share(beside: int) -> dict[str, str]:
    """Environment variables that limit a stage to its share of the processors when ``beside`` stages run at once."""
    if beside == 1 or "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // beside))}


def chosen(params: dict[str, Any], students: Sequence[str] | None) -> dict[str, Any]:
    """Restrict ``params`` to some of its students.

    Raises:
        InputError: params.yaml does not list one of them.
    """
    known = listed(params, "students")
    for student in students or ():
        if student not in known:
            raise InputError(f"unknown student {student!r}: `students` of params.yaml lists {', '.join(known)}.")
    return params | {"students": list(students or known)}


def check_engine(params: Mapping[str, Any], on_gpu: Sequence[str]) -> None:
    """Check that TensorRT is installed if engines are built on this machine, before hours of training.

    Raises:
        InputError: It is not.
    """
    needed = params.get("build_engine", {}).get("engine") == "tensorrt"
    if needed and not {"build_engine", "evaluate"} <= {*on_gpu} and find_spec("tensorrt") is None:
        raise InputError(
            "build_engine.engine is tensorrt, which is not installed on this machine: run the stages that need it on "
            "a GPU worker with `--on-gpu build_engine,evaluate` (docs/how-to/gpu-workers.md), or choose openvino."
        )


app = typer.Typer(**PLAIN)


@app.command()
def _command(
    students: Annotated[Names | None, names("Some of those in params.yaml; default: all.")] = None,
    at_once: Annotated[int, typer.Option(min=1, help="Stages that may run at the same time.")] = 1,
    on_gpu: Annotated[
        Names | None,
        names("Stages that workers of the pool gpu run: build_engine, distill ... (docs/how-to/gpu-workers.md)"),
    ] = None,
    debug: Annotated[bool, DEBUG_OPTION] = False,
) -> int:
    """Run all stages as one Prefect flow, and register the best model."""
    stages = on_gpu or ()
    for name in stages:
        if name not in get_args(Verb):
            known = ", ".join(get_args(Verb))
            raise typer.BadParameter(f"stages of {name!r} cannot be handed over; those of {known} can")

    def check() -> int:
        preflight.check_release()
        return OK

    def run() -> int:
        return _run(list(students) if students else None, at_once, stages)

    return guarded(check, "the flow") or guarded(run, "the flow", _resume)


def _resume() -> str:
    return " `python -m flows.release` resumes it."


def _run(students: list[str] | None, at_once: int, on_gpu: Sequence[str]) -> int:
    temporary_server.end_with_this_process()
    with console.quiet("release") as log:
        state: State[Any] = release(students, at_once, on_gpu, return_state=True)
        try:
            rows = state.result()
        except ReleaseFailedError as error:
            failed: InputError | ReleaseFailedError | None = error
        except InputError as error:
            if state.name != NOT_STARTED:
                raise
            failed = error
        else:
            failed = None
    if isinstance(failed, ReleaseFailedError):
        return _print_failure(failed, log)
    if failed is not None:
        return report(str(failed), BAD_INPUT)
    _print_leaderboard(rows)
    if state.name == WITH_REFUSALS:
        print(state.message)
        return REFUSED
    return OK


def _print_failure(failed: ReleaseFailedError, log: Path | None) -> int:
    """Print a failed release in at most `console.LINES` lines; returns the exit code."""
    if failed.rows is not None and len(failed.rows) <= _FEW_ROWS:
        _print_leaderboard(failed.rows)
    elif failed.rows is not None:
        print(f"{len(failed.rows)} models are compared in {_COMPARISON / 'report.html'}")
    sys.stdout.flush()
    if failed.refused:
        print(failed.refused, file=sys.stderr)
    console.print_reasons(str(failed).splitlines(), log)
    return BAD_INPUT if failed.bad_input else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the flow, then print the leaderboard and where to find more.

    Returns:
        0; 1 if stages failed; 2 for bad input; 3 if gates refused candidates and nothing else failed; 130 after
        Ctrl-C, 143 after SIGTERM.
    """
    raise_on_signals()
    return command_line.run(app, arguments, "python -m flows.release")


def _print_leaderboard(rows: list[dict[str, Any]]) -> None:
    """Print the leaderboard, and where to find more."""
    from pipeline.compare.table import leaderboard_text  # imports plotting libraries, which the flow does not need

    print(f"\n{leaderboard_text(rows, read_refusals(_COMPARISON))}\n")
    print(f"report          {_COMPARISON / 'report.html'}")
    print("MLflow pages    mlflow server --host 127.0.0.1 --backend-store-uri sqlite:///mlflow.db")
    print('Prefect pages   PREFECT_HOME="$PWD/.prefect" prefect server start --host 127.0.0.1')


if __name__ == "__main__":
    sys.exit(main())
