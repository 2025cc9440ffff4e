"""The model served by MLflow: image and prompts in, masks out. MLflow executes this file to build it."""

import base64
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from mlflow.exceptions import MlflowException
from mlflow.models import set_model
from mlflow.protos.databricks_pb2 import INVALID_PARAMETER_VALUE
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from pipeline.core.errors import InputError

MOST_ROWS = 256
"""Rows of a request."""
MOST_POINTS = 256
"""Points of a row."""
LONGEST_IMAGE = 64 << 20
"""Characters of an image in base64."""


class SegmentationModel(PythonModel):
    """Segmentation model with one prompt per row.

    Columns: ``image`` (base64 of a JPEG or PNG), ``point_coords`` [[x, y], ...], ``point_labels``, ``box`` xyxy.
    Coordinates are pixels of the image. The result has one row per prompt: ``masks``, COCO RLE with text counts, and
    ``iou_predictions``, the model's predicted IoU of each mask.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Load the registered engine."""
        from pipeline.runtime import load

        self._segmenter = load(Path(context.artifacts["engine"]))

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Predict masks for each row; consecutive rows with the same image encode it once.

        Raises:
            MlflowException: An image cannot be read, a row has neither points nor a box, a prompt is malformed, or
                there are more than `MOST_ROWS` rows or `MOST_POINTS` points in one; INVALID_PARAMETER_VALUE, which the
                server answers with status 400.
        """
        from pipeline.ops.masks import encode
        from pipeline.runtime import Predictor

        if len(model_input) > MOST_ROWS:
            raise _invalid(f"a request may have {MOST_ROWS} rows, not {len(model_input)}: send several")
        # One predictor per call, since it holds an image and MLflow's server uses several threads.
        predictor = Predictor(self._segmenter)
        multimask_output = bool((params or {}).get("multimask_output", False))
        current, results = None, []
        for number, row in enumerate(model_input.to_dict(orient="records")):
            try:
                image, points, labels, box = row.get("image"), *_prompt(row)
                if current is None or image != current:
                    predictor.set_image(_image(image))
                    current = image
                masks, scores, _ = predictor.predict(
                    point_coords=points, point_labels=labels, box=box, multimask_output=multimask_output
                )
            except InputError as error:
                raise _invalid(f"row {number} (counted from 0): {error}") from None
            rles = [encode(np.asarray(mask, dtype=bool)) for mask in masks]
            results.append({"masks": rles, "iou_predictions": [float(score) for score in scores]})
        return pd.DataFrame(results)


def _invalid(message: str) -> MlflowException:
    return MlflowException(message, error_code=INVALID_PARAMETER_VALUE)


def _image(text: object) -> np.ndarray:
    """Decode a base64 JPEG or PNG to RGB pixels, turned as its EXIF orientation says."""
    from pipeline.data.photograph import read_pixels

    if not isinstance(text, str) or not text or len(text) > LONGEST_IMAGE:
        raise InputError(f"`image` must be base64 of a JPEG or PNG, at most {LONGEST_IMAGE} characters")
    try:
        raw = base64.b64decode(text, validate=True)
    except ValueError as error:  # binascii's, and for other characters than ASCII's
        raise InputError(f"`image` must be base64 of a JPEG or PNG: {error}") from None
    if not raw.startswith((b"\xff\xd8\xff", b"\x89PNG")):
        raise InputError("`image` is not a readable JPEG or PNG")
    return read_pixels(raw, "`image`").rgb


def _prompt(row: Mapping[str, Any]) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """Points ``(N, 2)``, labels ``(N,)`` and box ``(4,)`` of a row, each or None."""
    points = _array(row.get("point_coords"), "point_coords", (None, 2))
    labels = _array(row.get("point_labels"), "point_labels", (None,))
    box = _array(row.get("box"), "box", (4,))
    if box is None and points is None:
        raise InputError("a row needs a box [x1, y1, x2, y2], or point_coords with one point_labels entry each")
    return points, labels, box


def _array(value: Any, name: str, shape: tuple[int | None, ...]) -> np.ndarray | None:
    """Convert a list of numbers of this shape, None for any length; None for a missing value of a data frame."""
    from pipeline.core.untrusted.json_file import FARTHEST, shown

    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    value = _plain(value)
    if value == []:
        return None
    if isinstance(value, list) and shape[0] is None and len(value) > MOST_POINTS:
        raise InputError(f"`{name}` may have {MOST_POINTS} entries, not {len(value)}")
    if not _fits(value, shape):
        form = {"box": "a list of 4 numbers", "point_labels": "a list of numbers"}.get(name, "a list of numbers [x, y]")
        raise InputError(f"`{name}` must be {form} from -{FARTHEST} to {FARTHEST}, not {shown(value)}")
    return np.array(value, np.float64)


def _plain(value: Any, levels: int = 3) -> Any:
    """Lists instead of arrays and tuples; MLflow hands over either."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple) and levels:
        return [_plain(part, levels - 1) for part in value]
    return value


def _fits(value: Any, shape: tuple[int | None, ...]) -> bool:
    from pipeline.core.untrusted.json_file import FARTHEST
    from pipeline.core.untrusted.segmentation import is_number

    if not shape:
        return is_number(value) and abs(value) <= FARTHEST
    length, *rest = shape
    return isinstance(value, list) and length in (None, len(value)) and all(_fits(v, tuple(rest)) for v in value)


set_model(SegmentationModel())
