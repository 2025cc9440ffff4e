"""Masks of two real photographs for the report. Nothing is scored: the photographs have no ground truth."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from pipeline.data import sample_photographs
from pipeline.evaluate.everything import EverythingConfig
from pipeline.ops import masks
from pipeline.runtime import Predictor, everything

PROMPTS: tuple[tuple[str, str, tuple[int, ...]], ...] = (
    ("flower.jpg", "click", (307, 222)),
    ("flower.jpg", "box", (168, 85, 448, 362)),
    ("china.jpg", "box", (62, 28, 374, 422)),
)
"""Photograph, kind of prompt, and the click (x, y) or the box xyxy in pixels."""
EVERYTHING = "china.jpg"
"""Photograph of everything mode."""
_MODE = "hierarchical"


def photographs(predictor: Predictor, config: EverythingConfig | None) -> dict[str, Any]:
    """Contents of photographs.json: the mask of each prompt, and all masks of one photograph.

    Args:
        predictor: Provides the model.
        config: Settings of everything mode; None omits it.

    Raises:
        InputError: scikit-learn, which ships the photographs, is not installed.
    """
    answers, shown = list[Mapping[str, Any]](), ""
    for name, prompt, numbers in PROMPTS:
        if name != shown:
            predictor.set_image(sample_photographs.read(name))
            shown = name
        given = np.array([numbers], np.float32)
        if prompt == "box":
            best = predictor.predict_best(boxes=given)
        else:
            best = predictor.predict_best(point_coords=given[:, None], point_labels=np.ones((1, 1), np.int64))
        mask = masks.encode(best.masks[0])
        answers.append({"file_name": name, "prompt": prompt, "numbers": list(numbers), "segmentation": mask})
    result: dict[str, Any] = {"prompts": answers}
    if config is not None:
        image = sample_photographs.read(EVERYTHING)
        records = everything(predictor, image, _MODE, config.settings())
        reported = [{key: record[key] for key in ("segmentation", "area", "predicted_iou")} for record in records]
        result["everything"] = {"file_name": EVERYTHING, "mode": _MODE, "records": reported}
    return result
