"""A registered model as the server takes it: by its name, which may come to mean another version."""

from pathlib import Path

from mlflow.exceptions import MlflowException

from pipeline.core.errors import InputError
from pipeline.promote.download import URI, download, find_version
from pipeline.tracking import Store


class Registered:
    """``models:/NAME@ALIAS`` or ``models:/NAME/VERSION`` in MLflow's registry.

    Args:
        uri: The model.

    Raises:
        InputError: It is of another form, or MLflow cannot be reached.
    """

    def __init__(self, uri: str) -> None:
        parts = URI.fullmatch(uri)
        if parts is None:
            raise InputError(f"{uri!r} is not a registered model: give models:/NAME@ALIAS or models:/NAME/VERSION.")
        self._uri, self._parts, self._store = uri, parts, Store.open()

    def version(self) -> str:
        """The version that the name means now.

        Raises:
            InputError: There is none, or MLflow cannot be reached.
        """
        try:
            version = find_version(
                self._store.client, self._parts["name"], self._parts["alias"], self._parts["version"]
            )
        except (MlflowException, OSError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"{self._uri} cannot be read from MLflow at {self._store.uri}: {reason}.") from error
        if version is None:
            raise InputError(
                f"MLflow at {self._store.uri} has no {self._uri}: `python -m pipeline register` makes the first."
            )
        return str(version.version)

    def fetch(self, version: str, directory: Path) -> Path:
        """Download a version's artifact below ``directory``.

        Raises:
            InputError: There is no such version, or MLflow cannot be reached.
        """
        return download(f"models:/{self._parts['name']}/{version}", str(directory))
