"""Download of a registered model's artifact."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import mlflow.artifacts
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.protos.databricks_pb2 import RESOURCE_DOES_NOT_EXIST, ErrorCode

from pipeline.core.errors import InputError
from pipeline.promote.registry import silenced, version_of
from pipeline.tracking import Store

URI = re.compile(r"models:/(?P<name>[^/@]+)(?:@(?P<alias>[^/@]+)|/(?P<version>\d+))")


@dataclass(frozen=True)
class Parts:
    """Folders of a downloaded version."""

    engine: Path
    """The artifact that was registered."""
    about: Path | None
    """Model card, metrics and lineage; None for versions of earlier releases."""


@contextmanager
def downloaded(uri: str) -> Iterator[Path]:
    """Download a version's engine to a temporary folder.

    Args:
        uri: ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.

    Yields:
        Directory of the artifact that was registered; deleted afterwards.

    Raises:
        InputError: ``uri`` is of another form, there is no such version, it is not of this pipeline, or MLflow cannot
            be reached.
    """
    with TemporaryDirectory() as directory:
        yield download(uri, directory)


def download(uri: str, directory: str) -> Path:
    """`downloaded` to a folder that stays.

    Raises:
        InputError: As `downloaded`.
    """
    return download_all(uri, directory).engine


def download_all(uri: str, directory: str) -> Parts:
    """Download everything that a version carries.

    Raises:
        InputError: As `downloaded`.
    """
    store, version = named(uri)
    try:
        with silenced():
            source = mlflow.artifacts.download_artifacts(
                artifact_uri=f"models:/{version.name}/{version.version}",
                dst_path=directory,
                tracking_uri=store.uri,
                registry_uri=store.uri,
            )
        flavor = Model.load(source).flavors.get("python_function", {})
    except (MlflowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{uri} cannot be downloaded from MLflow at {store.uri}: {reason}.") from error
    paths = {name: Path(source, part["path"]) for name, part in flavor.get("artifacts", {}).items()}
    if "engine" not in paths:
        raise InputError(f"{uri} holds no engine: give a model that `python -m pipeline register` registered.")
    return Parts(paths["engine"], paths.get("about"))


def named(uri: str) -> tuple[Store, ModelVersion]:
    """The version that a URI names, and the store that has it.

    Raises:
        InputError: ``uri`` is of another form, there is no such version, or MLflow cannot be reached.
    """
    parts = URI.fullmatch(uri)
    if parts is None:
        raise InputError(f"{uri!r} is not a registered model: give models:/NAME@ALIAS or models:/NAME/VERSION.")
    store = Store.open()
    try:
        version = find_version(store.client, parts["name"], parts["alias"], parts["version"])
    except (MlflowException, OSError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"{uri} cannot be read from MLflow at {store.uri}: {reason}.") from error
    if version is None:
        raise InputError(f"MLflow at {store.uri} has no {uri}: `python -m pipeline register` makes the first.")
    return store, version


def find_version(client: MlflowClient, name: str, alias: str | None, number: str | None) -> ModelVersion | None:
    """The version of an alias or a number; None if there is none."""
    if alias is not None:
        return version_of(client, name, alias)
    try:
        return client.get_model_version(name, str(number))
    except MlflowException as error:
        if error.error_code == ErrorCode.Name(RESOURCE_DOES_NOT_EXIST):
            return None
        raise
