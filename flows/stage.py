"""One stage on a worker: code from git, parameters from the caller, inputs and result through DVC's remote."""

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version

from prefect import flow, get_run_logger
from prefect.client.schemas.objects import State
from prefect.states import Completed

from flows import clone, dvc
from pipeline.tracking import PARENT_RUN


@flow(name="stage")
def stage(target: str, deps: list[str], commit: str, params: str, lock: str, parent: str) -> None:
    """Run one stage for another machine and push its result to DVC's remote.

    Args:
        target: DVC's name of the stage.
        deps: Targets whose results it reads; they are in the remote.
        commit: Commit hash of the code.
        params: Text of params.yaml.
        lock: Text of dvc.lock, which identifies the results it reads.
        parent: Parent MLflow run, used if both machines share an MLflow server.

    Raises:
        InputError: The commit cannot be checked out.
        BadInputError: The stage rejected its input.
        StageFailedError: It failed otherwise, or inputs or result could not be transferred.
    """
    say = get_run_logger().info
    shared = os.environ.get("MLFLOW_TRACKING_URI", "").startswith("http")
    with clone.check_out(commit, params, lock), dvc.Stages() as stages:
        if deps:
            stages.fetch(deps, say)
        stages.repro(target, {PARENT_RUN: parent} if shared else {}, say)
        stages.push([target], say, run_cache=True)


@flow(name="check")
def check() -> State[None]:
    """Report a worker's host, GPU and package versions as the message of the final state."""
    facts = {"host": platform.node(), "python": platform.python_version(), "gpu": _gpu()}
    for package in ("torch", "tensorrt", "openvino", "flash-attn"):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    facts["clone"] = str(os.environ.get(clone.CLONE))
    return Completed(message="\n".join(f"{name}: {value}" for name, value in facts.items()))


def _gpu() -> str:
    """Name, driver and memory, as reported by nvidia-smi."""
    if shutil.which("nvidia-smi") is None:
        return "none (nvidia-smi is not installed)"
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True).stdout.strip() or "none responding"
