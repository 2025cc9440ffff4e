"""Start a worker in this clone, check whether one responds, and create Prefect's pools and deployments."""

import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Literal, get_args

import typer
import yaml
from prefect.automations import Automation, EventTrigger, Posture, ResourceSpecification
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.deployments import run_deployment
from prefect.events.actions import ChangeFlowRunState
from prefect.exceptions import ObjectAlreadyExists

from flows.clone import CLONE
from pipeline.core import command_line
from pipeline.core.command_line import DEBUG_OPTION, PLAIN
from pipeline.core.errors import InputError
from pipeline.core.failures import OK, guarded
from pipeline.core.preflight import check_checkout, check_prefect

Pool = Literal["cpu", "gpu"]
POOLS: tuple[Pool, ...] = get_args(Pool)
HEARTBEAT_S = 30
"""Heartbeat interval of runs on workers, the smallest that Prefect accepts."""
SILENCE_S = 90
"""Seconds without a heartbeat after which a run counts as crashed."""
_AUTOMATION = "SAM Distillery: runs that fell silent have crashed"


def deploy() -> None:
    """Create the work pools, the deployments of prefect.yaml, and the automation that detects dead workers.

    Raises:
        InputError: There is no server, or the deployments cannot be created.
    """
    _require_server()
    with get_client(sync_client=True) as client:
        for pool in POOLS:
            try:
                client.create_work_pool(WorkPoolCreate(name=pool, type="process"))
            except ObjectAlreadyExists:
                continue
    done = subprocess.run([sys.executable, "-m", "prefect", "--no-prompt", "deploy", "--all"], env=_environment())
    if done.returncode:
        raise InputError("the deployments of prefect.yaml could not be created; see Prefect's output above.")
    _create_automation()


def _create_automation() -> None:
    """Create or update the automation that marks runs of our deployments as crashed when heartbeats stop."""
    with get_client(sync_client=True) as client:
        deployments = [client.read_deployment_by_name(name).id for name in _deployments()]
        known = client.read_automations_by_name(_AUTOMATION)
    automation = Automation(
        name=_AUTOMATION,
        trigger=EventTrigger(
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.*"},  # another heartbeat, or an event named after the run's final state
            match=ResourceSpecification({"prefect.resource.id": ["prefect.flow-run.*"]}),
            # The server may have runs of other projects with other heartbeat intervals.
            match_related=ResourceSpecification(
                {
                    "prefect.resource.role": ["deployment"],
                    "prefect.resource.id": [f"prefect.deployment.{deployment}" for deployment in deployments],
                }
            ),
            for_each={"prefect.resource.id"},
            posture=Posture.Proactive,
            threshold=1,
            within=timedelta(seconds=SILENCE_S),
        ),
        actions=[ChangeFlowRunState(name=None, state=StateType.CRASHED, message="its worker fell silent", force=False)],
    )
    for existing in known:
        automation.id, automation.enabled = existing.id, existing.enabled
        automation.update()
    if not known:
        automation.create()


def _deployments() -> list[str]:
    """Full names of the deployments of prefect.yaml, ``<flow>/<deployment>``."""
    entries = yaml.safe_load(Path("prefect.yaml").read_text())["deployments"]
    return [f"{entry['entrypoint'].rpartition(':')[2]}/{entry['name']}" for entry in entries]


def start(pool: str) -> int:
    """Serve a work pool from this clone until stopped, one run at a time, since each worker has one clone and GPU."""
    _require_server()
    command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool, "--type", "process", "--limit", "1"]
    os.execve(sys.executable, command, _environment())  # preserves Prefect's signal handling and exit codes


def attempt(pool: str, timeout_s: float) -> int:
    """Query a worker of a pool for its machine's configuration.

    Raises:
        InputError: No worker responded in time.
    """
    _require_server()
    run: FlowRun = run_deployment(  # type: ignore[assignment]  # its annotation allows for callers that await it
        f"check/{pool}", timeout=timeout_s, poll_interval=1
    )
    if run.state is None or not run.state.is_completed():
        raise InputError(
            f"no worker of pool {pool} responded within {timeout_s:.0f} s: "
            f"start one with `python -m flows.worker {pool}`."
        )
    print(run.state.message)
    return 0


def _require_server() -> None:
    if not os.environ.get("PREFECT_API_URL"):
        raise InputError(
            "PREFECT_API_URL is not set: set it to the Prefect server's address (docs/how-to/gpu-workers.md)."
        )
    check_prefect()


def _environment() -> dict[str, str]:
    """Environment of Prefect's commands: makes this clone importable and enables heartbeats."""
    clone = str(Path.cwd())
    path = os.pathsep.join(filter(None, [clone, os.environ.get("PYTHONPATH", "")]))
    return os.environ | {CLONE: clone, "PYTHONPATH": path, "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": str(HEARTBEAT_S)}


app = typer.Typer(**PLAIN)


@app.command()
def _command(
    pool: Annotated[Pool | None, typer.Argument(help="The work pool to serve.")] = None,
    make: Annotated[bool, typer.Option("--deploy", help="Create pools and deployments, once per server.")] = False,
    test: Annotated[bool, typer.Option("--try", help="Print a running worker's configuration.")] = False,
    timeout: Annotated[float, typer.Option(metavar="S", help="For --try, in seconds.")] = 60,
    debug: Annotated[bool, DEBUG_OPTION] = False,
) -> int:
    """Serve a work pool from this clone: stages handed over by `flows.release --on-gpu`, or whole releases.

    PREFECT_API_URL is the address of the Prefect server.
    """
    if pool is None and (test or not make):
        raise typer.BadParameter("name a pool, or give --deploy")

    def serve() -> int:
        check_checkout()
        if make:
            deploy()
        if pool is None:
            return OK
        return attempt(pool, timeout) if test else start(pool)

    return guarded(serve, "the worker")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; see `pipeline.core.failures` for exit codes."""
    return command_line.run(app, arguments, "python -m flows.worker")


if __name__ == "__main__":
    sys.exit(main())
