"""The gate of all engines: outputs must agree with the student's in PyTorch fp32.

It runs end to end on images of the calibration split, with their instances' boxes as prompts, so that errors of
calibration, of fp16's range and of the engine's own arithmetic all show.
"""

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.build_engine.config import BuildEngineConfig
from pipeline.build_engine.overflow import first_out_of_range
from pipeline.core.errors import InputError, Refused
from pipeline.data.shards import Sample
from pipeline.ops import masks
from pipeline.ops.geometry import boxes_to_frame, to_input
from pipeline.ops.point_labels import BOX_CORNERS
from pipeline.runtime.exported import decoder_feeds
from pipeline.runtime.segmenter import Segmenter

BOXES = 16
"""Maximum number of instances per image, the largest first."""
SMALLEST_CELLS = 16
"""Size in low-resolution pixels from which an empty mask is an error; smaller masks may vanish."""


def check(
    config: BuildEngineConfig, engine: Segmenter, reference: Segmenter, samples: Iterable[Sample], exported: Path
) -> dict[str, float]:
    """Compare an engine with the student it was built from.

    Args:
        config: Thresholds, and the engine's name for messages.
        engine: The built engine.
        reference: The student in PyTorch.
        samples: Samples of the calibration split.
        exported: Directory of the engine's ONNX files, read to locate an overflow.

    Returns:
        ``embedding_cosine``, the minimum over images; ``mask_agreement``, the mean IoU of masks; ``prompts``, their
        number.

    Raises:
        Refused: An output is not finite, a mask vanished, or agreement is below the config's thresholds.
        InputError: No sample has an instance.
    """
    cosines, agreements = list[float](), list[Tensor]()
    for sample in samples:
        feeds = {"image": to_input(sample.image, engine.input_size)[None]}
        embedding, expected = engine.encode(feeds["image"]).cpu(), reference.encode(feeds["image"]).cpu()
        if not torch.isfinite(embedding).all():
            raise _not_finite(config, "image_embedding", exported / "encoder.onnx", _arrays(feeds))
        cosine = torch.nn.functional.cosine_similarity(embedding.flatten().double(), expected.flatten().double(), dim=0)
        cosines.append(float(cosine))
        if not cosines[-1] >= config.min_cosine:  # NaN too
            overflow = first_out_of_range(exported / "encoder.onnx", _arrays(feeds))
            raise _too_far(config, "embedding_cosine", cosines[-1], "min_cosine", overflow)
        corners = boxes(sample, engine.image_size)
        if len(corners):
            agreements.append(_masks(config, engine, reference, embedding, expected, corners, exported))
    if not agreements:
        raise InputError("no calibration image that was compared has an instance: prepare a split that has some.")
    agreement = torch.cat(agreements)
    figures = {
        "embedding_cosine": min(cosines),
        "mask_agreement": float(agreement.mean()),
        "prompts": float(len(agreement)),
    }
    if figures["mask_agreement"] < config.min_mask_agreement:
        raise _too_far(config, "mask_agreement", figures["mask_agreement"], "min_mask_agreement", None)
    return figures


def _masks(
    config: BuildEngineConfig,
    engine: Segmenter,
    reference: Segmenter,
    embedding: Float[Tensor, "1 256 g g"],
    expected: Float[Tensor, "1 256 g g"],
    corners: Float[Tensor, "p 2 2"],
    exported: Path,
) -> Float[Tensor, " p"]:
    """IoU per prompt of the masks with the student's highest predicted IoU."""
    labels = torch.tensor([BOX_CORNERS], dtype=torch.float32).expand(len(corners), 2).contiguous()
    logits, ious = (tensor.cpu() for tensor in engine.decode(embedding, corners, labels))
    true_logits, true_ious = (tensor.cpu() for tensor in reference.decode(expected, corners, labels))
    for name, tensor in (("low_res_logits", logits), ("iou_predictions", ious)):
        if not torch.isfinite(tensor).all():
            raise _not_finite(config, name, exported / "decoder.onnx", decoder_feeds(embedding, corners, labels, None))
    chosen = true_ious.argmax(dim=1)
    every = torch.arange(len(corners))
    mask, true = (logits[every, chosen] > 0).flatten(1), (true_logits[every, chosen] > 0).flatten(1)
    vanished = ~mask.any(dim=1) & (true.sum(dim=1) >= SMALLEST_CELLS)
    if vanished.any():
        raise Refused(
            "build_engine.vanished_masks",
            f"the {config.engine} engine gives an empty mask for {int(vanished.sum())} of {len(corners)} boxes of an "
            "image where the student in fp32 does not: use a higher precision, or another engine.",
            value=float(vanished.sum()),
            limit=0.0,
        )
    union = (mask | true).sum(dim=1)
    return torch.where(union > 0, (mask & true).sum(dim=1) / union.clamp(min=1), 1.0)


def boxes(sample: Sample, side: int) -> Float[Tensor, "p 2 2"]:
    """Boxes of the largest instances as pairs of corners in the prompt frame."""
    rles = sorted((a["segmentation"] for a in sample.annotations), key=masks.area, reverse=True)[:BOXES]
    xyxy = [masks.box(masks.decode(rle)) for rle in rles if masks.area(rle)]
    size = (sample.image.shape[0], sample.image.shape[1])
    return torch.from_numpy(boxes_to_frame(np.array(xyxy, np.float32).reshape(-1, 4), size, side).reshape(-1, 2, 2))


def _arrays(feeds: dict[str, Tensor]) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in feeds.items()}


def _not_finite(config: BuildEngineConfig, name: str, path: Path, feeds: dict[str, np.ndarray]) -> Refused:
    overflow = _describe(first_out_of_range(path, feeds))
    reason = f"the {config.engine} engine gives values that are not finite in {name}. {overflow}"
    return Refused("build_engine.finite", reason)


def _too_far(config: BuildEngineConfig, name: str, value: float, rule: str, overflow: str | None) -> Refused:
    return Refused(
        f"build_engine.{rule}",
        f"the {config.engine} engine is too far from the student in fp32: {name} is {value:.6f}, build_engine.{rule} "
        f"asks for {getattr(config, rule)}. {_describe(overflow) if name == 'embedding_cosine' else ''}"
        "Use a higher precision, or keep layers out of it (quantize.keep).",
        value=value,
        limit=getattr(config, rule),
    )


def _describe(overflow: str | None) -> str:
    return f"The first to leave its range: {overflow}. " if overflow else "In ONNX Runtime no tensor leaves its range. "
