"""MLflow's model registry: what is registered, and which version is challenger, champion, previous."""

import base64
import importlib.metadata
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
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
from mlflow.types.schema import AnyType, Array, ColSpec, DataType, Object, ParamSchema, ParamSpec, Property, Schema

from pipeline.artifact import Card

CHALLENGER, CHAMPION, PREVIOUS = "challenger", "champion", "previous"

_RLE = Object([Property("size", Array(DataType.long)), Property("counts", DataType.string)])
# Arrays of floating-point numbers would refuse whole ones, and rows that lack a prompt which others have.
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
}
"""What serving needs, for every engine ("") and for one."""


@contextmanager
def as_default(uri: str) -> Iterator[None]:
    """Make a store MLflow's default one, the only one that its calls for models know, and leave no trace of it.

    MLflow writes the address into the environment: in a process that works in several places, later runs and child
    processes would follow it into the wrong store.
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


def version_of(client: MlflowClient, name: str, alias: str) -> ModelVersion | None:
    """The version that has an alias, if any."""
    try:
        return client.get_model_version_by_alias(name, alias)
    except MlflowException:
        return None


def version_with(client: MlflowClient, name: str, digest: str) -> ModelVersion | None:
    """The version made from the engine with this digest, if any."""
    versions = client.search_model_versions(f"name = '{name}'")
    return next((version for version in versions if version.tags.get("digest") == digest), None)


def log_model(name: str, engine: Path, metrics: Mapping[str, float]) -> str:
    """Log an engine as a servable model of the active run, register it, and return the version.

    Args:
        name: Name in the registry.
        engine: Directory of an engine artifact; it is copied into the model.
        metrics: Numbers linked to the model.
    """
    card = Card.read(engine)
    kind = str(card.load.get("engine", ""))
    with TemporaryDirectory() as directory:
        # The bundled teacher's weights are no part of what is served.
        code = Path(directory) / "pipeline"
        shutil.copytree(Path(__file__).parents[1], code, ignore=shutil.ignore_patterns("__pycache__", "*.safetensors"))
        info = mlflow.pyfunc.log_model(
            name=f"{card.model}-{card.precision}".replace(".", "_"),
            python_model=str(Path(__file__).with_name("serving.py")),
            artifacts={"engine": str(engine)},
            code_paths=[str(code)],
            signature=SIGNATURE,
            input_example=input_example(),
            pip_requirements=[
                f"{package}=={importlib.metadata.version(package).partition('+')[0]}"
                for package in (*_PACKAGES[""], *_PACKAGES.get(kind, ()))
            ],
            registered_model_name=name,
            metadata={"digest": card.digest, "student": card.model, "precision": card.precision},
        )
    mlflow.log_metrics(dict(metrics), model_id=info.model_id)
    return str(info.registered_model_version)


def input_example() -> list[dict[str, Any]]:
    """A bright disc on a dark ground, and a click on it."""
    image = np.zeros((96, 128, 3), np.uint8)
    cv2.circle(image, (64, 48), 30, (230, 200, 120), thickness=-1)
    raw = cv2.imencode(".png", image)[1].tobytes()
    prompt = {"point_coords": [[64.0, 48.0]], "point_labels": [1], "box": [34.0, 18.0, 94.0, 78.0]}
    return [{"image": base64.b64encode(raw).decode("ascii"), **prompt}]
