"""The main checkout, also for runs in DVC's temporary copies of it.

`dvc exp run --temp` and ``--queue`` run in a copy below ``.dvc/tmp/exps`` and delete it. Persistent data that DVC does
not track (the store of embeddings, downloads, MLflow's database) belongs in the checkout they were copied from.
"""

import os
from pathlib import Path

STORE = "SAM_DISTILLERY_STORE"
"""Environment variable: the directory that `embed.store` and `teacher.store` are relative to."""
_COPIES = (".dvc", "tmp", "exps")


def main_checkout() -> Path:
    """The current directory, or the checkout that DVC copied it from for an experiment."""
    current = Path.cwd()
    for directory in current.parents:
        if directory.parts[-len(_COPIES) :] == _COPIES:
            return directory.parents[len(_COPIES) - 1]
    return current


def store_path(directory: str) -> Path:
    """Resolve the path of a store in params.yaml: relative paths are below `STORE` or the main checkout."""
    return main_checkout().joinpath(os.environ.get(STORE, ""), directory)
