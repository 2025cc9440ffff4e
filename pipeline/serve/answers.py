"""Masks as clients ask for them, and low-resolution logits in base64."""

import base64
import binascii
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from pipeline.ops import masks
from pipeline.ops.outlines import polygons
from pipeline.runtime.everything.upscaling import Upscaling
from pipeline.serve.problems import invalid
from pipeline.serve.schemas import Format

_HALF = np.finfo(np.float16).max


def segmentation(mask: Bool[np.ndarray, "h w"], form: Format) -> Any:
    """A mask in one of the formats."""
    if form == "rle":
        return masks.encode(mask)
    if form == "png":
        _, data = cv2.imencode(".png", mask.astype(np.uint8) * 255, [cv2.IMWRITE_PNG_BILEVEL, 1])
        return base64.b64encode(data.tobytes()).decode()
    return [[round(value, 1) for value in outline.ravel().tolist()] for outline in polygons(mask)]


def described(mask: Bool[np.ndarray, "h w"], iou: float, form: Format) -> dict[str, Any]:
    """A mask with its box, area and predicted IoU."""
    rows, columns = masks.bounds(mask)
    box = [columns.start, rows.start, columns.stop - columns.start, rows.stop - rows.start]
    return {
        "segmentation": segmentation(mask, form),
        "bbox": box,
        "area": int(np.count_nonzero(mask)),
        "predicted_iou": round(iou, 6),
    }


def answer(
    logits: Float[Tensor, "4 m m"],
    ious: Float[Tensor, "4"],
    *,
    upscaling: Upscaling,
    which: str,
    form: Format,
    low_res: bool,
) -> list[dict[str, Any]]:
    """Masks of one prompt: the best of the multimask outputs, the single one, or all multimask outputs."""
    tokens = {"single": [0], "all": [1, 2, 3]}.get(which) or [1 + int(ious[1:].argmax())]
    result = []
    for token, mask in zip(tokens, upscaling.masks(logits[tokens]), strict=True):
        described_mask = described(mask, float(ious[token]), form)
        if low_res:
            described_mask["low_res_mask"] = logits_to_base64(logits[token])
        result.append(described_mask)
    return result


def logits_to_base64(logits: Float[Tensor, "m m"]) -> str:
    """Logits as little-endian float16."""
    half = logits.numpy().clip(-_HALF, _HALF).astype("<f2")
    return base64.b64encode(half.tobytes()).decode()


def logits_from_base64(text: str, side: int) -> Float[Tensor, "1 side side"]:
    """Logits of `logits_to_base64`.

    Raises:
        Problem: They are not that, or of another side.
    """
    try:
        raw = base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        raise invalid("mask_input is not base64.") from None
    if len(raw) != 2 * side * side:
        raise invalid(f"mask_input has {len(raw)} bytes, not {side} x {side} float16: give a low_res_mask.")
    values = np.frombuffer(raw, "<f2").astype(np.float32).reshape(1, side, side)
    if not np.isfinite(values).all():
        raise invalid("mask_input has NaN or infinity.")
    return torch.from_numpy(values)
