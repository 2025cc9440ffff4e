"""The model that MLflow serves: an image and prompts in, masks out. MLflow runs this file to build it."""

import base64
import binascii
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pandas as pd
from mlflow.models import set_model
from mlflow.pyfunc.model import PythonModel, PythonModelContext

from pipeline.errors import InputError


class SegmentationModel(PythonModel):
    """One row is one prompt.

    Columns: ``image`` (base64 of a JPEG or PNG), ``point_coords`` [[x, y], ...], ``point_labels``, ``box`` xyxy.
    Coordinates are pixels of the image. The answer has a row for each: ``masks``, COCO RLE with text counts, and
    ``iou_predictions``, the model's own estimate of each mask.
    """

    def load_context(self, context: PythonModelContext) -> None:
        """Load the engine that was registered with the model."""
        from pipeline.runtime import Predictor, load

        self._predictor = Predictor(load(Path(context.artifacts["engine"])))

    def predict(
        self, context: PythonModelContext, model_input: pd.DataFrame, params: dict[str, Any] | None = None
    ) -> pd.DataFrame:
        """Masks for each row; rows with the same image encode it once.

        Raises:
            InputError: An image cannot be read, or a row has neither points nor a box.
        """
        from pipeline.masks import encode

        several = bool((params or {}).get("multimask_output", False))
        shown, answers = None, []
        for row in model_input.to_dict(orient="records"):
            if row["image"] != shown:
                self._predictor.set_image(_image(row["image"]))
                shown = row["image"]
            points, labels, box = (_array(row.get(name)) for name in ("point_coords", "point_labels", "box"))
            if box is None and (points is None or labels is None or len(points) != len(labels)):
                raise InputError("a row needs a box [x1, y1, x2, y2], or point_coords with one point_labels entry each")
            if points is None or labels is None:
                points = labels = None
            masks, scores, _ = self._predictor.predict(
                point_coords=points, point_labels=labels, box=box, multimask_output=several
            )
            found = [encode(np.asarray(mask, dtype=bool)) for mask in masks]
            answers.append({"masks": found, "iou_predictions": [float(score) for score in scores]})
        return pd.DataFrame(answers)


def _image(text: str) -> np.ndarray:
    """RGB pixels of a base64-encoded JPEG or PNG."""
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, TypeError) as error:
        raise InputError(f"`image` must be base64 of a JPEG or PNG: {error}") from None
    pixels = cv2.imdecode(np.frombuffer(raw, np.uint8), cv2.IMREAD_COLOR) if raw else None
    if pixels is None:
        raise InputError("`image` holds no JPEG or PNG that can be read")
    return cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB)


def _array(value: object) -> np.ndarray | None:
    """A list of numbers, or None for what a data frame has in place of an absent one."""
    if value is None or isinstance(value, float) or not np.size(np.asarray(value, dtype=object)):
        return None
    return np.array([np.asarray(part, dtype=np.float64) for part in value])  # type: ignore[attr-defined]


set_model(SegmentationModel())
