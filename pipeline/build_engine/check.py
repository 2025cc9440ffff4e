"""The gate of an engine: what it gives must be what the ONNX files mean.

It runs on a picture that is drawn, not taken from the dataset, so that an engine depends on nothing but its model.
"""

import numpy as np
import torch
from jaxtyping import UInt8

from pipeline.build_engine.config import BuildEngineConfig
from pipeline.errors import InputError
from pipeline.geometry import to_input
from pipeline.runtime.segmenter import Segmenter


def picture(side: int) -> UInt8[np.ndarray, "side side 3"]:
    """Shaded ground, two discs and a bar: something to segment, the same on every machine."""
    y, x = np.mgrid[0:side, 0:side].astype(np.float64) / side
    image = np.stack([60 + 90 * x, 110 + 50 * y, 150 - 80 * x * y], axis=-1)
    image[(x - 0.3) ** 2 + (y - 0.35) ** 2 < 0.03] = (220, 60, 40)
    image[(x - 0.72) ** 2 + (y - 0.6) ** 2 < 0.02] = (40, 90, 210)
    image[(abs(x - 0.45) < 0.3) & (abs(y - 0.85) < 0.04)] = (240, 230, 90)
    pixels: UInt8[np.ndarray, "side side 3"] = np.rint(image).astype(np.uint8)
    return pixels


def check(config: BuildEngineConfig, engine: Segmenter, reference: Segmenter) -> dict[str, float]:
    """Compare an engine with ONNX Runtime.

    Returns:
        ``embedding_cosine``; ``mask_agreement``, mean IoU of masks; ``logits_max_difference``.

    Raises:
        InputError: Something is not finite, all masks are empty or full, or agreement is below the config's.
    """
    image = to_input(picture(engine.input_size), engine.input_size)[None]
    found, expected = engine.encode(image), reference.encode(image)
    side = engine.image_size
    coords = torch.tensor([[[0.3, 0.35], [0.0, 0.0]], [[0.72, 0.6], [0.0, 0.0]], [[0.15, 0.81], [0.75, 0.89]]]) * side
    labels = torch.tensor([[1.0, -1.0], [1.0, -1.0], [2.0, 3.0]])
    logits, ious = engine.decode(expected, coords, labels)
    expected_logits, _ = reference.decode(expected, coords, labels)
    names = ("embedding", "low_res_logits", "iou_predictions")
    infinite = [n for n, t in zip(names, (found, logits, ious), strict=True) if not torch.isfinite(t).all()]
    if infinite:
        raise InputError(f"the {config.engine} engine gives values that are not finite in {', '.join(infinite)}.")
    masks, expected_masks = logits > 0, expected_logits > 0
    if expected_masks.any() and not masks.any():
        raise InputError(f"the {config.engine} engine gives empty masks only; ONNX Runtime does not.")
    union = (masks | expected_masks).flatten(2).sum(-1)
    shared = (masks & expected_masks).flatten(2).sum(-1)
    cosine = torch.nn.functional.cosine_similarity(found.flatten().double(), expected.flatten().double(), dim=0)
    figures = {
        "embedding_cosine": float(cosine),
        "mask_agreement": float(torch.where(union > 0, shared / union.clamp(min=1), 1.0).mean()),
        "logits_max_difference": float((logits - expected_logits).abs().max()),
    }
    for name, least in (("embedding_cosine", config.min_cosine), ("mask_agreement", config.min_mask_agreement)):
        if not figures[name] >= least:
            raise InputError(
                f"the {config.engine} engine is too far from ONNX Runtime: {name} is {figures[name]:.6f}, "
                f"build_engine.min_{name.removeprefix('embedding_')} asks for {least}. "
                "Set build_engine.inference_precision to f32, or another engine."
            )
    return figures
