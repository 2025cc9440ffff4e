"""URI of the MLflow store, readable without importing MLflow."""

import os
import re
from pathlib import Path

from pipeline.core.checkout import main_checkout

_SQLITE = "sqlite:///"
_DEFAULT = f"{_SQLITE}mlflow.db"


def tracking_uri() -> str:
    """The store of all runs: ``MLFLOW_TRACKING_URI``, or ``mlflow.db`` in the checkout."""
    return anchored(os.environ.get("MLFLOW_TRACKING_URI") or _DEFAULT)


def anchored(uri: str) -> str:
    """Make a SQLite URI absolute, since MLflow caches stores by URI, whatever the current directory.

    A relative path is resolved against the main checkout, also in a copy that DVC makes for an experiment.
    """
    path = sqlite_file(uri)
    return f"{_SQLITE}{main_checkout() / path}" if path else uri


def sqlite_uri(path: Path) -> str:
    """URI of a SQLite database."""
    return f"{_SQLITE}{path.absolute()}"


def sqlite_file(uri: str) -> Path | None:
    """File of a plain SQLite URI; None for in-memory databases, URIs with options, and servers."""
    name = uri.removeprefix(_SQLITE)
    plain = uri.startswith(_SQLITE) and name and not name.startswith((":memory:", "file:")) and "?" not in name
    return Path(name) if plain else None


def without_password(uri: str) -> str:
    """The URI as messages show it: without user name and password."""
    return re.sub(r"//[^/]*@", "//", uri)
