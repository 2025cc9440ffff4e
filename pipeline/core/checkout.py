"""The checkout that runs belong to, also where they run in a copy of it.

`dvc exp run --temp` and ``--queue`` work in a copy below ``.dvc/tmp/exps`` and remove it. What is to outlast them and
is not DVC's to keep (the store of embeddings, downloads, MLflow's database) lies in the checkout they were made from.
"""

import os
from pathlib import Path

STORE = "SAM_DISTILLERY_STORE"
"""Environment variable: the directory that `embed.store` and `teacher.store` are relative to."""
_COPIES = (".dvc", "tmp", "exps")


def main_checkout() -> Path:
    """The checkout a person works in: the current directory, or the one that DVC copied for an experiment."""
    here = Path.cwd()
    for place in here.parents:
        if place.parts[-len(_COPIES) :] == _COPIES:
            return place.parents[len(_COPIES) - 1]
    return here


def store_path(directory: str) -> Path:
    """Where a store of params.yaml is: an absolute path as it is, another one below `STORE` or the main checkout."""
    return main_checkout().joinpath(os.environ.get(STORE, ""), directory)
