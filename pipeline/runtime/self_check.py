"""A repeatable check stored with an engine: inputs, and the student's outputs for them in PyTorch fp32.

An engine is compared with its student where it is built. On another machine the student, the dataset and PyTorch may be
missing, and the processor's arithmetic may differ; the self-check can be repeated there. It is small: images are
downscaled, embeddings are stored at some cells in half precision, masks as bits at low resolution.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float, UInt8
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from pipeline.core.errors import InputError
from pipeline.core.untrusted import tensor_file
from pipeline.ops.geometry import resize_image, to_input
from pipeline.ops.point_labels import BOX_CORNERS
from pipeline.runtime.segmenter import Segmenter

SELF_CHECK = "self_check.safetensors"
_SIDE_PX = 224
_CELLS = 384
_BOXES = 4
_GATE = "gate"
_TOKENS = 4
"""Masks per prompt."""
_FIELDS = {
    "image": (torch.uint8, 3),
    "point_coords": (torch.float32, 3),
    "cells": (torch.int64, 1),
    "embedding": (torch.float16, 2),
    "token": (torch.int64, 1),
    "masks": (torch.uint8, 3),
}
"""Tensors of a case, their types and numbers of dimensions."""
_NONE = torch.empty(0)
_REMEDY = "rebuild the engine (`dvc repro`)"

Case = dict[str, Tensor]
"""An image and the student's outputs for it.

``image`` uint8 (h, w, 3) RGB; ``point_coords`` (p, 2, 2), box corners in the prompt frame; ``cells`` (n), row-major
indices of the stored embedding cells; ``embedding`` (256, n), half precision; ``token`` (p), which of four masks the
student ranks highest; ``masks`` (p, m, m / 8), that mask at low resolution as packed bits."""


@dataclass(frozen=True)
class Agreement:
    """Agreement of an engine with its student, and the gate it was built under."""

    embedding_cosine: float
    """The lowest of all images."""
    mask_iou: float
    """Mean over boxes."""
    images: int
    boxes: int
    min_cosine: float
    min_mask_iou: float

    @property
    def passes(self) -> bool:
        """Whether both figures pass the gate; NaN does not."""
        return self.embedding_cosine >= self.min_cosine and self.mask_iou >= self.min_mask_iou


def make_case(reference: Segmenter, image: UInt8[np.ndarray, "h w 3"], corners: Float[Tensor, "p 2 2"]) -> Case:
    """Compute the student's outputs for a downscaled image.

    Args:
        reference: The student in PyTorch.
        image: RGB.
        corners: Box corners in the prompt frame; the first few are used.
    """
    image = resize_image(image, _SIDE_PX) if max(image.shape[:2]) > _SIDE_PX else image
    corners = corners[:_BOXES]
    embedding = reference.encode(to_input(image, reference.input_size)[None]).cpu()
    flat = embedding[0].flatten(1)
    cells = torch.linspace(0, flat.shape[1] - 1, min(_CELLS, flat.shape[1])).round().long()
    logits, ious = (tensor.cpu() for tensor in reference.decode(embedding, corners, _labels(corners)))
    token = ious.argmax(dim=1)
    masks = (logits[torch.arange(len(corners)), token] > 0).numpy()
    bits = torch.from_numpy(np.packbits(masks, axis=-1))
    pixels = torch.from_numpy(np.array(image))
    return dict(zip(_FIELDS, (pixels, corners, cells, flat[:, cells].half(), token, bits), strict=True))


def save(cases: Sequence[Case], directory: Path, *, min_cosine: float, min_mask_iou: float) -> None:
    """Write ``self_check.safetensors``: at most 1 MB for two cases, the same bytes for the same cases."""
    tensors = {f"{i}.{name}": value.contiguous() for i, case in enumerate(cases) for name, value in case.items()}
    # No metadata: safetensors writes them in any order.
    save_file(tensors | {_GATE: torch.tensor([min_cosine, min_mask_iou], dtype=torch.float64)}, directory / SELF_CHECK)


@torch.inference_mode()
def repeat(engine: Segmenter, directory: Path) -> Agreement:
    """Compare an engine on this machine with its student's stored outputs.

    Args:
        engine: Loaded from ``directory``.
        directory: Holds ``self_check.safetensors``.

    Raises:
        InputError: The file is missing or damaged.
    """
    cases, gate = _read(directory / SELF_CHECK)
    cosines, overlaps = list[float](), list[Tensor]()
    for case in cases:
        embedding = engine.encode(to_input(case["image"].numpy(), engine.input_size)[None]).cpu()
        actual = embedding[0].flatten(1)[:, case["cells"]].double().flatten()
        cosines.append(float(F.cosine_similarity(actual, case["embedding"].double().flatten(), dim=0)))
        corners, token = case["point_coords"], case["token"]
        logits = engine.decode(embedding, corners, _labels(corners))[0].cpu()
        mask = (logits[torch.arange(len(token)), token] > 0).flatten(1)
        true = torch.from_numpy(np.unpackbits(case["masks"].numpy(), axis=-1).astype(bool)).flatten(1)
        union = (mask | true).sum(1)
        overlaps.append(torch.where(union > 0, (mask & true).sum(1) / union.clamp(min=1), 1.0))
    ious = torch.cat(overlaps)
    # numpy's minimum propagates NaN, the built-in one may not.
    return Agreement(float(np.min(cosines)), float(ious.mean()), len(cases), len(ious), *gate)


def _labels(corners: Float[Tensor, "p 2 2"]) -> Float[Tensor, "p 2"]:
    return torch.tensor([BOX_CORNERS], dtype=torch.float32).expand(len(corners), 2).contiguous()


def _read(path: Path) -> tuple[list[Case], tuple[float, float]]:
    if not path.is_file():
        raise InputError(f"{path} does not exist: rebuild the engine (`dvc repro`).")
    state = tensor_file.safetensors(path, remedy=_REMEDY, finite=False)  # NaN misses the gate
    count = len({name.partition(".")[0] for name in state} - {_GATE})
    if count == 0:
        raise InputError(f"{path} holds no case: {_REMEDY}.")
    cases = [{field: state.get(f"{i}.{field}", _NONE) for field in _FIELDS} for i in range(count)]
    gate = state.get(_GATE, _NONE)
    if gate.shape != (2,) or not all(map(_is_case, cases)):
        raise InputError(f"{path} does not hold cases of a self-check: {_REMEDY}.")
    return cases, (float(gate[0]), float(gate[1]))


def _is_case(case: Case) -> bool:
    """Whether types and shapes are those that `Case` states, and indices are in range."""
    if [(case[field].dtype, case[field].ndim) for field in _FIELDS] != list(_FIELDS.values()):
        return False
    image, corners, cells, embedding, token, masks = (case[field] for field in _FIELDS)
    boxes = len(corners)
    return (
        image.shape[2] == 3
        and 1 <= min(image.shape) <= max(image.shape) <= _SIDE_PX
        and corners.shape[1:] == (2, 2)
        and embedding.shape[1] == len(cells)
        and (len(token), len(masks)) == (boxes, boxes)
        and bool(((token >= 0) & (token < _TOKENS)).all())
        and bool((cells >= 0).all())
    )
