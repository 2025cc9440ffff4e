"""Hand a stage to a worker on another machine, wait for it, and try another worker when one dies."""

import os
import re
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import LogFilter, LogFilterFlowRunId
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound
from prefect.states import Cancelling

from flows import clone, dvc
from pipeline.core.config import PARAMS
from pipeline.core.errors import InputError
from pipeline.core.stage import DVC_LOCK

POOL = "gpu"
DEPLOYMENT = f"stage/{POOL}"
WORKERS = 3
"""How many workers may die with one stage before it fails."""
_POLL_S = 2.0
_SERVER_MAY_BE_GONE_S = 300.0
_FAILURE = re.compile(r"(?:Flow run encountered an exception: )?(\w+): (.*)", re.DOTALL)
"""How Prefect tells a failed run's exception."""
_LATE_S = 60.0


def check_ready() -> None:
    """See that stages can be handed over, before anything else runs.

    Raises:
        InputError: There is no server, deployment or remote that both machines reach, or code is not committed.
    """
    if not os.environ.get("PREFECT_API_URL"):
        raise InputError(
            "stages can be handed to workers only through a Prefect server that both reach: start one and set "
            "PREFECT_API_URL (docs/gpu.md)."
        )
    if not dvc.remote():
        raise InputError(
            "stages are handed over through a DVC remote that both machines reach: `dvc remote add --default NAME URL`."
        )
    with get_client(sync_client=True) as client:
        try:
            client.read_deployment_by_name(DEPLOYMENT)
        except ObjectNotFound:
            raise InputError(
                f"Prefect knows no deployment {DEPLOYMENT}: run `python -m flows.worker --deploy`."
            ) from None
    clone.commit()


def hand_over(stages: dvc.Stages, target: str, deps: Sequence[str], parent: str, say: Callable[[str], None]) -> None:
    """Run one stage on a worker, up to having its result in DVC's remote.

    Args:
        stages: Of the flow; when they end, the worker's run is cancelled.
        target: DVC's name of the stage.
        deps: Targets whose results it reads; they are up to date here.
        parent: The flow's MLflow run.
        say: Called with each line that the worker logs.

    Raises:
        BadInputError: The stage refused its input, or the worker cannot work.
        StageFailedError: It failed, or one worker after the other died.
        StoppedError: The flow ended.
    """
    stages.push(deps, say, run_cache=False)
    for number in range(1, WORKERS + 1):
        run: FlowRun = run_deployment(  # type: ignore[assignment]  # its annotation allows for callers that await it
            DEPLOYMENT,
            parameters={
                "target": target,
                "deps": list(deps),
                "commit": clone.commit(),
                "params": PARAMS.read_text(),
                "lock": DVC_LOCK.read_text() if DVC_LOCK.is_file() else "",
                "parent": parent,
            },
            flow_run_name=target if number == 1 else f"{target} again",
            timeout=0,
            as_subflow=False,
        )
        with get_client(sync_client=True) as client:
            state = _wait(client, run.id, target, stages, say)
        if state.type is StateType.COMPLETED:
            return
        reason = str(state.message or state.name)
        if state.type is StateType.FAILED:
            told = _FAILURE.match(reason)
            kind, text = told.groups() if told else ("", reason)
            raise (dvc.BadInputError if kind in ("BadInputError", "InputError") else dvc.StageFailedError)(text)
        if state.type is StateType.CANCELLED:
            raise dvc.StoppedError(f"{target}: somebody cancelled it on the worker")
        say(f"the worker that had {target} is lost ({reason}); it goes to another")
    raise dvc.StageFailedError(f"{target}: {WORKERS} workers died with it")


def _wait(
    client: SyncPrefectClient, run: UUID, target: str, stages: dvc.Stages, say: Callable[[str], None]
) -> State[object]:
    """Follow a run to its end, whatever end it is; cancel it when this ends before."""
    chosen, seen = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run])), 0
    late, heard = time.monotonic() + _LATE_S, time.monotonic()
    try:
        while True:
            try:
                state = client.read_flow_run(run).state
                for entry in client.read_logs(chosen, offset=seen, limit=200):
                    say(f"worker: {entry.message}")
                    seen += 1
                heard = time.monotonic()
            except httpx.HTTPError:
                if time.monotonic() > heard + _SERVER_MAY_BE_GONE_S:
                    raise
                state = None
            if state is not None and state.is_final():
                return state
            if stages.ended:
                raise dvc.StoppedError(f"{target}: stopped, because the flow ended")
            if state is not None and state.is_scheduled() and time.monotonic() > late:
                say(f"no worker has taken {target} yet: start one with `python -m flows.worker {POOL}` on its machine")
                late = time.monotonic() + _LATE_S
            time.sleep(_POLL_S)
    except BaseException:
        with suppress(Exception):
            client.set_flow_run_state(run, Cancelling())
        raise
