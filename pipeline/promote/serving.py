"""The model served by MLflow: image and prompts in, masks out. MLflow executes this file to build it."""

import base64
import binascii
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from pipeline.core.errors import InputError


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
            InputError: An image cannot be read, a row has neither points nor a box, or a prompt is malformed.
        """
        from pipeline.ops.masks import encode
        from pipeline.runtime import Predictor

        # One predictor per call, since it holds an image and MLflow's server uses several threads.
        predictor = Predictor(self._segmenter)
        multimask_output = bool((params or {}).get("multimask_output", False))
        current, results = None, []
        for row in model_input.to_dict(orient="records"):
            if row["image"] != current:
                predictor.set_image(_image(row["image"]))
                current = row["image"]
            points, labels, box = (_array(row.get(name), name) for name in ("point_coords", "point_labels", "box"))
            if box is None and points is None:
                raise InputError("a row needs a box [x1, y1, x2, y2], or point_coords with one point_labels entry each")
            masks, scores, _ = predictor.predict(
                point_coords=points, point_labels=labels, box=box, multimask_output=multimask_output
            )
            rles = [encode(np.asarray(mask, dtype=bool)) for mask in masks]
            results.append({"masks": rles, "iou_predictions": [float(score) for score in scores]})
        return pd.DataFrame(results)


def _image(text: str) -> np.ndarray:
    """Decode a base64 JPEG or PNG to RGB pixels."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, TypeError) as error:
        raise InputError(f"`image` must be base64 of a JPEG or PNG: {error}") from None
    pixels = cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_COLOR) if raw else None
    if pixels is None:
        raise InputError("`image` is not a readable JPEG or PNG")
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def _array(value: object, name: str) -> np.ndarray | None:
    """Convert a list of numbers; None for a missing value of a data frame."""
    if value is None or isinstance(value, float) or not np.size(np.asarray(value, dtype=object)):
        return None
    try:
        return np.array([np.asarray(part, dtype=np.float64) for part in value])  # type: ignore[attr-defined]
    except (TypeError, ValueError):
        raise InputError(f"`{name}` must be a list of numbers, or of equally long lists, not {value!r:.60}") from None


set_model(SegmentationModel())
