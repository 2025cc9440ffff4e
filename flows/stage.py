"""One stage on a worker's machine: code by git, parameters by the caller, inputs and result through DVC's remote."""

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
    """Run one stage for another machine, and put its result where that machine finds it.

    Args:
        target: DVC's name of the stage.
        deps: Targets whose results it reads; they are in the remote.
        commit: Of the code.
        params: Text of params.yaml.
        lock: Text of dvc.lock, which says what the needed results are.
        parent: MLflow run to become a child of, where both machines use one MLflow server.

    Raises:
        InputError: The clone cannot be brought to the commit.
        BadInputError: The stage refused its input.
        StageFailedError: It failed otherwise, or inputs or result could not be moved.
    """
    say = get_run_logger().info
    shared = os.environ.get("MLFLOW_TRACKING_URI", "").startswith("http")
    with clone.at(commit, params, lock), dvc.Stages() as stages:
        if deps:
            stages.fetch(deps, say)
        stages.repro(target, {PARENT_RUN: parent} if shared else {}, say)
        stages.push([target], say, run_cache=True)


@flow(name="check")
def check() -> State[None]:
    """What the machine of a worker has, as the message of the last state: a person sees that one answers, and which."""
    facts = {"host": platform.node(), "python": platform.python_version(), "gpu": _gpu()}
    for package in ("torch", "tensorrt", "openvino", "flash-attn"):
        try:
            facts[package] = version(package)
        except PackageNotFoundError:
            facts[package] = "not installed"
    facts["clone"] = str(os.environ.get(clone.CLONE))
    return Completed(message="\n".join(f"{name}: {value}" for name, value in facts.items()))


def _gpu() -> str:
    """Name and driver, as the driver's own tool tells them."""
    if shutil.which("nvidia-smi") is None:
        return "none (nvidia-smi is not there)"
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    return subprocess.run(query, capture_output=True, text=True).stdout.strip() or "none that answers"
