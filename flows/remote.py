"""Hand a stage to a worker on another machine, wait for it, and retry on another worker if one dies."""

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
"""Number of workers a stage is tried on before it fails."""
_POLL_S = 2.0
_SERVER_TIMEOUT_S = 300.0
_FAILURE = re.compile(r"(?:Flow run encountered an exception: )?(\w+): (.*)", re.DOTALL)
"""Prefect's message for a failed run's exception."""
_LATE_S = 60.0


def check_ready() -> None:
    """Check that stages can be handed over, before anything else runs.

    Raises:
        InputError: There is no Prefect server, deployment or DVC remote, or code is not committed and pushed.
    """
    if not os.environ.get("PREFECT_API_URL"):
        raise InputError(
            "handing stages to workers needs a Prefect server that both machines reach: start one and set "
            "PREFECT_API_URL (docs/how-to/gpu-workers.md)."
        )
    if not dvc.remote():
        raise InputError(
            "handing stages to workers needs a DVC remote that both reach: `dvc remote add --default NAME URL`."
        )
    with get_client(sync_client=True) as client:
        try:
            client.read_deployment_by_name(DEPLOYMENT)
        except ObjectNotFound:
            raise InputError(
                f"Prefect has no deployment {DEPLOYMENT}: run `python -m flows.worker --deploy`."
            ) from None
    clone.commit()


def hand_over(stages: dvc.Stages, target: str, deps: Sequence[str], parent: str, say: Callable[[str], None]) -> None:
    """Run one stage on a worker, which pushes its result to DVC's remote.

    Args:
        stages: The flow's stages; when they end, the worker's run is cancelled.
        target: DVC's name of the stage.
        deps: Targets whose results it reads; up to date on this machine.
        parent: The flow's MLflow run.
        say: Called with each line that the worker logs.

    Raises:
        BadInputError: The stage rejected its input, or the worker cannot run it.
        StageFailedError: It failed, or `WORKERS` workers died.
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
            match = _FAILURE.match(reason)
            kind, text = match.groups() if match else ("", reason)
            raise (dvc.BadInputError if kind in ("BadInputError", "InputError") else dvc.StageFailedError)(text)
        if state.type is StateType.CANCELLED:
            raise dvc.StoppedError(f"{target}: cancelled on the worker")
        say(f"the worker running {target} is lost ({reason}); retrying on another")
    raise dvc.StageFailedError(f"{target}: {WORKERS} workers died while running it")


def _wait(
    client: SyncPrefectClient, run: UUID, target: str, stages: dvc.Stages, say: Callable[[str], None]
) -> State[object]:
    """Follow a run until it ends and return its final state; cancel it if this function exits earlier."""
    log_filter, offset = LogFilter(flow_run_id=LogFilterFlowRunId(any_=[run])), 0
    late, last_contact = time.monotonic() + _LATE_S, time.monotonic()
    try:
        while True:
            try:
                state = client.read_flow_run(run).state
                for entry in client.read_logs(log_filter, offset=offset, limit=200):
                    say(f"worker: {entry.message}")
                    offset += 1
                last_contact = time.monotonic()
            except httpx.HTTPError:
                if time.monotonic() > last_contact + _SERVER_TIMEOUT_S:
                    raise
                state = None
            if state is not None and state.is_final():
                return state
            if stages.ended:
                raise dvc.StoppedError(f"{target}: stopped, because the flow ended")
            if state is not None and state.is_scheduled() and time.monotonic() > late:
                say(f"no worker has started {target} yet: run `python -m flows.worker {POOL}` on a worker machine")
                late = time.monotonic() + _LATE_S
            time.sleep(_POLL_S)
    except BaseException:
        with suppress(Exception):
            client.set_flow_run_state(run, Cancelling())
        raise
