"""The main checkout, also for runs in DVC's temporary copies of it.

`dvc exp run --temp` and ``--queue`` run in a copy below ``.dvc/tmp/exps`` and delete it. Persistent data that DVC does
not track (the store of embeddings, downloads, MLflow's database) belongs in the checkout they were copied from.
"""

import os
from pathlib import Path

STORE = "SAM_DISTILLERY_STORE"
"""Environment variable: the directory that `embed.store` and `teacher.store` are relative to."""
_COPIES = (".dvc", "tmp", "exps")
_MARKS = ("dvc.yaml", "params.yaml")


def main_checkout() -> Path:
    """The current directory, or the checkout that DVC copied it from for an experiment."""
    current = Path.cwd()
    for directory in current.parents:
        if directory.parts[-len(_COPIES) :] == _COPIES:
            return directory.parents[len(_COPIES) - 1]
    return current


def checkout_above() -> Path | None:
    """The checkout that the current directory is a subdirectory of; None in a checkout or outside any."""
    current = Path.cwd()
    if any((current / name).exists() for name in _MARKS):
        return None
    return next((parent for parent in current.parents if all((parent / name).exists() for name in _MARKS)), None)


def store_path(directory: str) -> Path:
    """Resolve the path of a store in params.yaml: relative paths are below `STORE` or the main checkout."""
    return main_checkout().joinpath(os.environ.get(STORE, ""), directory)
