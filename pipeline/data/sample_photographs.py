"""Two photographs that scikit-learn ships, with their credits: pictures of the world for any machine, offline."""

from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from pipeline.core.errors import InputError

CREDITS = {
    "china.jpg": "© danielbuechele",
    "flower.jpg": "© vultilion",
}
"""Photographer of each photograph; both are under CC BY 2.0 (see README.txt beside them)."""
LICENSE = "CC BY 2.0"


def path_of(name: str) -> Path:
    """File of a photograph.

    Raises:
        InputError: scikit-learn, which ships it, is not installed.
    """
    try:  # the package itself takes a second to import
        path = Path(str(distribution("scikit-learn").locate_file(f"sklearn/datasets/images/{name}")))
    except PackageNotFoundError:
        raise InputError(f"{name} is a photograph of scikit-learn, which is not installed: run `make setup`.") from None
    if not path.is_file():
        raise InputError(f"{path} does not exist: install scikit-learn again.")
    return path


def read(name: str) -> UInt8[np.ndarray, "h w 3"]:
    """Pixels of a photograph as RGB.

    Raises:
        InputError: As `path_of`.
    """
    with Image.open(path_of(name)) as image:
        return np.asarray(image.convert("RGB"))
