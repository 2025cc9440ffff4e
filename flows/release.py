"""Bring every stage up to date, those of different students at once where asked to, and register the best model."""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import Any

from prefect import flow, get_run_logger, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import PrefectFuture, as_completed
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.tasks import Task

from flows import dvc, handover, place
from pipeline import promote, tracking
from pipeline.config import read_params
from pipeline.errors import InputError
from pipeline.process import exit_code, raise_on_signals
from pipeline.stage import ARTIFACTS, RESTORE_ONLY, Keys, Stage, listed
from pipeline.stages import STAGES

RETRIES = 1
"""A stage that fails by a fault, not by bad input, is tried once more."""


def _may_help(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    """Whether trying again may help: not with the same bad input, nor when all is to stop."""
    try:
        state.result()
    except (dvc.BadInputError, dvc.StoppedError):
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
def repro(target: str, environment: Mapping[str, str], stages: dvc.Stages) -> None:
    """Run one DVC stage unless it is up to date. DVC, not Prefect, decides what is stale."""
    stages.repro(target, environment, get_run_logger().info)


@task(
    task_run_name="{target} by a worker",
    cache_policy=NO_CACHE,
    retries=RETRIES,
    retry_delay_seconds=5,
    retry_condition_fn=_may_help,
)
def repro_elsewhere(
    target: str, needs: Sequence[str], environment: Mapping[str, str], stages: dvc.Stages, parent: str
) -> None:
    """Have a worker run one DVC stage, unless it is up to date, and take its result from DVC's remote."""
    say = get_run_logger().info
    if not stages.is_up_to_date(target):
        handover.hand_over(stages, target, needs, parent, say)
    # Should the result not have come back after all, it must not be made here unasked.
    stages.repro(target, {**environment, RESTORE_ONLY: "1"}, say, pull=True)


@task(cache_policy=NO_CACHE)
def register() -> str:
    """Register the best model as challenger."""
    return promote.register()


# A task that waits holds a thread, but no place among the stages that run.
_THREAD_EACH: Any = ThreadPoolTaskRunner()


@flow(validate_parameters=False, task_runner=_THREAD_EACH)
def release(students: list[str] | None = None, at_once: int = 1, on_gpu: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Run all stages for ``students`` (default: all of params.yaml) and register the best of them.

    Args:
        students: Some of those that params.yaml lists.
        at_once: How many stages may run beside each other; they share the processors. Training rounds differently with
            another number of threads, so results are those of plain `dvc repro` to the byte only with 1.
        on_gpu: Verbs whose stages workers of the pool ``gpu`` run, for example ``build_engine``; the others run here.

    Returns:
        The rows of the leaderboard.

    Raises:
        InputError: params.yaml does not list one of ``students``, a verb cannot be handed over, or workers cannot be
            reached.
    """
    params = chosen(read_params(), students)
    check_engine(params, on_gpu)
    with place.held():
        check_handed(on_gpu)
        return _release(params, at_once, on_gpu)


def _release(params: dict[str, Any], at_once: int, on_gpu: Sequence[str]) -> list[dict[str, Any]]:
    order = [stage.target(keys) for stage in STAGES for keys in stage.repetitions(params)]
    with tracking.parent_run("release") as parent, dvc.lock_in_order(order), dvc.Stages(at_once) as stages:
        submitted = _submit(params, parent.run, stages, at_once, on_gpu)
        for future in as_completed(list(submitted)):
            future.result()
            parent.adopt(submitted[future][0], params, submitted[future][1])
        rows = promote.leaderboard()
        _show(rows)
        get_run_logger().info(register())
    return rows


def _show(rows: list[dict[str, Any]]) -> None:
    """The leaderboard as an artifact on Prefect's pages."""
    from pipeline.compare.table import leaderboard_table  # with it come plotting libraries; the tasks do without

    text = f"Teacher and students on the validation split. The report: {ARTIFACTS / 'compare' / 'report.html'}"
    create_table_artifact(key="leaderboard", table=leaderboard_table(rows), description=text)


def _submit(
    params: Mapping[str, Any], parent: str, stages: dvc.Stages, at_once: int, on_gpu: Sequence[str]
) -> dict[PrefectFuture[None], tuple[Stage, Keys]]:
    """Hand every stage to Prefect; each waits for what it builds on, one that measures time for all before it."""
    environment = {tracking.PARENT_RUN: parent}
    submitted = dict[PrefectFuture[None], tuple[Stage, Keys]]()
    futures = dict[str, PrefectFuture[None]]()
    for stage in STAGES:
        repetitions = stage.repetitions(params)
        share = {} if stage.alone else _share(min(at_once, len(repetitions)))
        for keys in repetitions:
            below = [futures[need.target(found)] for need, found in stage.upstream(params, keys)]
            target, wait_for = stage.target(keys), list(futures.values()) if stage.alone else below
            if stage.name in on_gpu:
                needs = [need.target(found) for need, found in stage.inputs(params, keys)]
                futures[target] = repro_elsewhere.submit(
                    target, needs, environment, stages, parent, wait_for=wait_for, return_state=False
                )
            else:
                futures[target] = repro.submit(
                    target, environment | share, stages, wait_for=wait_for, return_state=False
                )
            submitted[futures[target]] = (stage, keys)
    return submitted


def _share(beside: int) -> dict[str, str]:
    """What tells a stage its part of the processors, where as many as ``beside`` run at once."""
    if beside == 1 or "OMP_NUM_THREADS" in os.environ:
        return {}
    return {"OMP_NUM_THREADS": str(max(1, len(os.sched_getaffinity(0)) // beside))}


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


def check_handed(verbs: Sequence[str]) -> None:
    """See that stages of these verbs can be handed to workers; nothing to see where there are none.

    Raises:
        InputError: A verb cannot be handed over, or workers cannot be reached.
    """
    known = [stage.name for stage in STAGES if stage.gpu]
    for verb in verbs:
        if verb not in known:
            raise InputError(f"stages of {verb!r} cannot be handed to a GPU worker; those of {', '.join(known)} can.")
    if verbs:
        handover.check_ready()


def check_engine(params: Mapping[str, Any], on_gpu: Sequence[str]) -> None:
    """See that TensorRT is here where its engines are to be built here, before hours go into a student.

    Raises:
        InputError: It is not.
    """
    asked = params.get("build_engine", {}).get("engine") == "tensorrt"
    if asked and not {"build_engine", "evaluate"} <= {*on_gpu} and find_spec("tensorrt") is None:
        raise InputError(
            "build_engine.engine is tensorrt, which is not installed here: hand the stages that need it to a machine "
            "that has it, with `--on-gpu build_engine,evaluate` and a worker there (docs/gpu.md), or choose openvino."
        )


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def main(argv: Sequence[str] | None = None) -> int:
    """Run the flow, then say what came out and where to look at it."""
    parser = argparse.ArgumentParser(prog="python -m flows.release", description="Run all stages as one Prefect flow.")
    parser.add_argument("--students", type=_names, help="some of those in params.yaml, as A,B (default: all)")
    parser.add_argument("--at-once", type=int, default=1, help="stages that may run beside each other (default: 1)")
    parser.add_argument(
        "--on-gpu",
        type=_names,
        default=[],
        metavar="VERB,VERB",
        help="stages that workers of the pool gpu run: build_engine, distill ... (default: none; docs/gpu.md)",
    )
    arguments = parser.parse_args(argv)
    if arguments.at_once < 1:
        parser.error(f"--at-once must be at least 1, not {arguments.at_once}")
    raise_on_signals()
    try:
        rows = release(arguments.students, arguments.at_once, arguments.on_gpu)
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
