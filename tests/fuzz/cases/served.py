"""Input of the served MLflow model."""

import base64
import functools
import io

import numpy as np
import pandas as pd
from numpy.random import Generator
from PIL import Image

from pipeline.models import build
from pipeline.promote.serving import SegmentationModel
from pipeline.runtime import load
from tests.fuzz.mutation import Case, damage, mutate, pick, replaced


def _png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (40, 30)).save(stream, "PNG")
    return stream.getvalue()


_PNG = _png()
_IMAGE = base64.b64encode(_PNG).decode()
_ROWS = [
    {"image": _IMAGE, "point_coords": [[1, 2], [3, 4]], "point_labels": [1, 0], "box": [1, 2, 20, 20]},
    {"image": _IMAGE, "point_coords": None, "point_labels": None, "box": [1, 2, 20, 20]},
]
_INVALID = (
    ((0, "image"), None),
    ((0, "image"), "é" + _IMAGE),
    ((0, "box"), [1, 2, float("nan"), 20]),
    ((0, "box"), [[1, 2, 20, 20], [1, 2, 20, 20]]),
    ((0, "box"), [1, 2, 10**400, 20]),
    ((0, "point_coords"), [[1, 2]] * 10_000),
    ((0, "point_labels"), [1, 5]),
)


def requests(rng: Generator) -> Case:
    """A table of requests."""
    if rng.random() < 0.3:
        table = pd.DataFrame(replaced(_ROWS, *pick(rng, _INVALID)))
        return Case(lambda _: _model().predict(None, table), invalid=True)
    rows = mutate(rng, _ROWS)
    if rng.random() < 0.3:
        rows = replaced(_ROWS, (0, "image"), base64.b64encode(damage(rng, _PNG)).decode())
    elif rng.random() < 0.2:
        rows = replaced(_ROWS, (0, "box"), np.array([1, 2, 20, 20], dtype=pick(rng, (object, float, bool, "S4"))))
    try:
        table = pd.DataFrame(rows)
    except Exception:  # noqa: BLE001 not a table: MLflow refuses it before the model
        table = pd.DataFrame()
    return Case(lambda _: _model().predict(None, table))


@functools.cache
def _model() -> SegmentationModel:
    model = SegmentationModel()
    model._segmenter = load(build("efficientvit_sam_nano"))
    return model
