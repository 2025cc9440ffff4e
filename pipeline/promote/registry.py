"""MLflow's model registry: versions and the aliases challenger, champion and previous."""

import base64
import importlib.metadata
import logging
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stderr
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import cv2
import mlflow
import numpy as np
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import ModelSignature
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode
from mlflow.types.schema import AnyType, Array, ColSpec, DataType, Object, ParamSchema, ParamSpec, Property, Schema

from pipeline.core.artifact import Card
from pipeline.core.errors import InputError
from pipeline.core.untrusted import json_file
from pipeline.ops.gate import target_of
from pipeline.tracking import database

CHALLENGER, CHAMPION, PREVIOUS = "challenger", "champion", "previous"

_RLE = Object([Property("size", Array(DataType.long)), Property("counts", DataType.string)])
# Typed float arrays would reject integers, and rows without a prompt that others have.
_ANY: Any = AnyType()  # type: ignore[no-untyped-call]
SIGNATURE = ModelSignature(
    inputs=Schema(
        [
            ColSpec(DataType.string, "image"),
            ColSpec(_ANY, "point_coords", required=False),
            ColSpec(_ANY, "point_labels", required=False),
            ColSpec(_ANY, "box", required=False),
        ]
    ),
    outputs=Schema([ColSpec(Array(_RLE), "masks"), ColSpec(Array(DataType.double), "iou_predictions")]),
    params=ParamSchema([ParamSpec("multimask_output", DataType.boolean, False)]),
)

_PACKAGES = {
    "": (
        "jaxtyping",
        "mlflow",
        "numpy",
        "opencv-python-headless",
        "pillow",
        "pycocotools",
        "pydantic",
        "pyyaml",
        "safetensors",
        "segment-anything",
        "torch",
        "torchvision",
    ),
    "openvino": ("openvino",),
    "onnxruntime": ("onnxruntime",),
    "tensorrt": ("tensorrt",),
}
"""Packages that serving needs, for every engine ("") and per engine."""
_CPU_WHEELS = "--extra-index-url https://download.pytorch.org/whl/cpu"
"""Requirement by which pip and uv take PyTorch's builds for processors, which are newer by their local version."""
_BUILT_WITH = "engine.json"
"""File of a TensorRT engine with the version that it is bound to."""


@contextmanager
def as_default(uri: str) -> Iterator[None]:
    """Make a store MLflow's default within the context, since its model calls use only the default.

    MLflow writes the URI into the environment; it is restored, so that later runs and child processes do not use the
    wrong store.
    """
    environment = {name: os.environ.get(name) for name in ("MLFLOW_TRACKING_URI", "MLFLOW_REGISTRY_URI")}
    tracking = mlflow.get_tracking_uri() if mlflow.is_tracking_uri_set() else None  # type: ignore[no-untyped-call]
    mlflow.set_tracking_uri(uri)
    mlflow.set_registry_uri(uri)
    try:
        yield
    finally:
        mlflow.set_tracking_uri(None if tracking == environment["MLFLOW_TRACKING_URI"] else tracking)  # type: ignore[arg-type]
        mlflow.set_registry_uri(environment["MLFLOW_REGISTRY_URI"] or "")
        for name, value in environment.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value


@contextmanager
def silenced() -> Iterator[None]:
    """Suppress MLflow's warnings about type hints and pickles, and its progress bars."""
    logger = logging.getLogger("mlflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    progress_bar = os.environ.get("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR")
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    try:
        yield
    finally:
        logger.setLevel(level)
        if progress_bar is None:
            del os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"]
        else:
            os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = progress_bar


@contextmanager
def exclusive(uri: str, name: str) -> Iterator[None]:
    """Lock a registered model against other processes of this machine.

    Raises:
        InputError: The store cannot be reached, or rejects a request.
    """
    with database.lock(uri, name):
        try:
            yield
        except MlflowException as error:
            reason = str(error).splitlines()[0]
            raise InputError(
                f"MLflow at {uri} failed: {reason}. Run the command again once it works; completed steps are kept."
            ) from error


def version_of(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    """The version with an alias; None if the store reports that there is none.

    Raises:
        MlflowException: The store cannot be reached, or refuses.
    """
    try:
        # For a missing alias MLflow's stores return the generic INVALID_PARAMETER_VALUE, so list all aliases instead.
        version = client.get_registered_model(name).aliases.get(alias)
    except MlflowException as error:
        if is_missing(error):
            return None
        raise
    return None if version is None else client.get_model_version(name, str(version))


def is_missing(error: MlflowException) -> bool:
    """Whether the store reports that what was asked for does not exist."""
    return bool(error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST))


def move(client: MlflowClient, name: str, alias: str, old: str | None, new: str) -> None:
    """Move ``alias`` to version ``new``, unless it is no longer at ``old``.

    MLflow's registry has no compare-and-set. Processes of one machine exclude each other (`exclusive`); a change by
    another machine is detected if it comes before the write or right after it, but not in the milliseconds between
    reading and writing.

    Args:
        client: MLflow client.
        name: Name of the registered model.
        alias: Alias to move.
        old: Expected current version; None for none.
        new: New version.

    Raises:
        InputError: Another process moved the alias meanwhile.
        MlflowException: The store cannot be reached, or rejects the request.
    """
    expect(client, name, alias, old)
    client.set_registered_model_alias(name, alias, new)
    expect(client, name, alias, new)


def expect(client: MlflowClient, name: str, alias: str, expected: str | None) -> None:
    """Check that ``alias`` is at a version.

    Raises:
        InputError: It is at another, since another process moved it.
    """
    current = version_of(client, name, alias)
    version = str(current.version) if current else None
    if version != expected:
        raise InputError(
            f"{name}: another process moved alias {alias} meanwhile, from version {expected or 'none'} to "
            f"{version or 'none'}. Check the registry, and run the command again if still needed."
        )


def version_with(client: MlflowClient, name: str, digest: str) -> ModelVersion | None:
    """The version made from the engine with this digest, if any.

    Raises:
        MlflowException: The store cannot be reached, or refuses.
    """
    versions = client.search_model_versions(f"name = '{name}'")
    return next((version for version in versions if version.tags.get("digest") == digest), None)


def log_model(
    name: str,
    engine: Path,
    metrics: Mapping[str, float],
    tags: Mapping[str, str],
    about: Path | None = None,
) -> str:
    """Log an engine as a servable model of the active run, register it, and return the version.

    Args:
        name: Name in the registry.
        engine: Directory of an engine artifact; it is copied into the model.
        metrics: Metrics linked to the model.
        tags: Tags of the version. They are there as soon as the version is, so that a registration that was killed
            finds its version again. Those that begin with ``run/`` are tags of the logged model instead.
        about: Folder with the model card and more, which is copied into the model too.
    """
    card = Card.read(engine)
    with TemporaryDirectory() as directory:
        # The bundled teacher's weights are not needed for serving.
        code = Path(directory) / "pipeline"
        shutil.copytree(Path(__file__).parents[1], code, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
        info = mlflow.pyfunc.log_model(
            name=f"{card.model}-{card.precision}".replace(".", "_"),
            python_model=str(Path(__file__).with_name("serving.py")),
            artifacts={"engine": str(engine)} | ({} if about is None else {"about": str(about)}),
            code_paths=[str(code)],
            signature=SIGNATURE,
            input_example=input_example(),
            pip_requirements=requirements(engine, card),
            metadata={"digest": card.digest, "student": card.model, "precision": card.precision},
        )
    mlflow.log_metrics(dict(metrics), model_id=info.model_id)
    made_by = {key: value for key, value in tags.items() if key.startswith("run/")}
    if made_by:
        mlflow.set_logged_model_tags(info.model_id, made_by)
    own = {key: value for key, value in tags.items() if key not in made_by}
    with redirect_stderr(StringIO()):  # MLflow prints what it registered
        return str(mlflow.register_model(info.model_uri, name, tags=own).version)


def requirements(engine: Path, card: Card) -> list[str]:
    """Requirements of pip for serving an engine: its runtime, and PyTorch for processors unless it needs a GPU.

    Args:
        engine: Directory of the artifact.
        card: Its card.
    """
    kind = str(card.load.get("engine", ""))
    lines = [] if target_of(kind) == "gpu" else [_CPU_WHEELS]
    return lines + [_pinned(package, engine) for package in (*_PACKAGES[""], *_PACKAGES.get(kind, ()))]


def _pinned(package: str, engine: Path) -> str:
    """A package in the version that is installed, or that an engine of another machine was built with."""
    try:
        version = importlib.metadata.version(package).partition("+")[0]
    except importlib.metadata.PackageNotFoundError:
        path = engine / _BUILT_WITH
        built = json_file.load(path, remedy="Rebuild the engine.") if path.is_file() else {}
        version = str(built.get(package, ""))
    return f"{package}=={version}" if version else package


def input_example() -> list[dict[str, Any]]:
    """An image of a bright disc on a dark background, with a click and a box."""
    image = np.zeros((96, 128, 3), np.uint8)
    cv2.circle(image, (64, 48), 30, (230, 200, 120), thickness=-1)
    raw = cv2.imencode(".png", image)[1].tobytes()
    prompt = {"point_coords": [[64.0, 48.0]], "point_labels": [1], "box": [34.0, 18.0, 94.0, 78.0]}
    return [{"image": base64.b64encode(raw).decode("ascii"), **prompt}]
