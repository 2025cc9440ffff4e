"""A SAM as two ONNX files: ``encoder.onnx`` and ``decoder.onnx``.

The encoder maps ``image (batch, 3, S, S)`` from `pipeline.ops.geometry.to_input` to ``image_embedding``. The decoder
takes one embedding and any number of prompts and points; without a box the caller appends segment-anything's padding
point. It takes one mask per prompt or one for all: without masks, pass zeros and clear ``has_mask_input``; the mask is
then embedded once, but image tokens are still copied for each prompt. Resizing of photographs and masks is not
exported; all runtimes share `pipeline.ops.geometry`.
"""

import copy
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.core.errors import Refused
from pipeline.export.form import save
from pipeline.models.decoder import decode_tokens, image_tokens
from pipeline.models.published import LayerNorm2d
from pipeline.models.sam import EMBEDDING_CHANNELS, Sam

ENCODER, DECODER = "encoder.onnx", "decoder.onnx"
Axes = Mapping[str, tuple[str | int, ...]]
"""Shapes of inputs or outputs by name; a dynamic axis is a name instead of a number."""


@runtime_checkable
class Foldable(Protocol):
    """A module of a student with a simpler equivalent for export."""

    def folded(self) -> nn.Module:
        """Return the simpler module."""


class _Encoder(nn.Module):
    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.image_encoder = sam.image_encoder

    def forward(self, image: Tensor) -> Tensor:
        embedding: Tensor = self.image_encoder(image)
        return embedding


class _Decoder(nn.Module):
    def __init__(self, sam: Sam) -> None:
        super().__init__()
        self.sam = sam

    def forward(
        self,
        image_embedding: Tensor,
        point_coords: Tensor,
        point_labels: Tensor,
        mask_input: Tensor,
        has_mask_input: Tensor,
    ) -> tuple[Tensor, Tensor]:
        image = image_tokens(self.sam, image_embedding, mask_input[None], has_mask_input)
        last = torch.full((1,), mask_input.shape[0] - 1)
        mask_of_prompt = torch.minimum(torch.arange(point_coords.shape[0]), last)  # TensorRT cannot clip integers
        prompts = (point_coords[None], point_labels[None])
        low_res_logits, iou_predictions, _ = decode_tokens(self.sam, image.index_select(0, mask_of_prompt), *prompts)
        return low_res_logits[0], iou_predictions[0]


class _ChannelNorm(nn.Module):
    """segment-anything's ``LayerNorm2d`` as one operator, which engines keep in fp32 in reduced precision."""

    def __init__(self, norm: LayerNorm2d) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = norm.weight, norm.bias, norm.eps

    def forward(self, x: Tensor) -> Tensor:
        return F.layer_norm(x.permute(0, 2, 3, 1), self.weight.shape, self.weight, self.bias, self.eps).permute(
            0, 3, 1, 2
        )


def export_encoder(sam: Sam, path: Path, *, opset: int, tolerance: float) -> dict[str, float]:
    """Write ``encoder.onnx`` and check it against PyTorch on batches of one and two, and on padding.

    Args:
        sam: The model, on the CPU; not modified.
        path: Output file.
        opset: Version of ONNX's operators, at least 18.
        tolerance: Largest absolute difference of embeddings that passes.

    Returns:
        ``encoder_max_difference`` and ``encoder_nodes``.

    Raises:
        Refused: The graph breaks a rule of `pipeline.export.rules`, or its outputs differ from PyTorch's.
    """
    side, grid = sam.input_size, sam.embedding_size
    inputs: Axes = {"image": ("batch", 3, side, side)}
    outputs: Axes = {"image_embedding": ("batch", EMBEDDING_CHANNELS, grid, grid)}
    module = _Encoder(_for_export(sam)).eval()
    generator = torch.Generator().manual_seed(0)
    trials = [(torch.randn(batch, 3, side, side, generator=generator),) for batch in (2, 1)]
    # Padding only: zeros reveal divisions that lost their epsilon (0/0).
    trials.append((torch.zeros(1, 3, side, side),))
    return _export(module, trials, path, inputs, outputs, opset=opset, tolerance=tolerance)


def export_decoder(sam: Sam, path: Path, *, opset: int, tolerance: float) -> dict[str, float]:
    """Write ``decoder.onnx`` and check it against PyTorch on several numbers of prompts and points.

    Arguments, results and errors are those of `export_encoder`.
    """
    grid = sam.embedding_size
    inputs: Axes = {
        "image_embedding": (1, EMBEDDING_CHANNELS, grid, grid),
        "point_coords": ("prompts", "points", 2),
        "point_labels": ("prompts", "points"),
        "mask_input": ("masks", 1, 4 * grid, 4 * grid),
        "has_mask_input": (1,),
    }
    outputs: Axes = {"low_res_logits": ("prompts", 4, 4 * grid, 4 * grid), "iou_predictions": ("prompts", 4)}
    generator = torch.Generator().manual_seed(0)
    trials = [
        (
            torch.randn(1, EMBEDDING_CHANNELS, grid, grid, generator=generator),
            torch.rand(prompts, points, 2, generator=generator) * sam.image_size,
            torch.randint(-1, 4, (prompts, points), generator=generator).float(),
            torch.randn(masks, 1, 4 * grid, 4 * grid, generator=generator),
            torch.tensor([has_mask]),
        )
        for prompts, masks, points, has_mask in (
            (3, 3, 5, 1.0),
            (1, 1, 2, 0.0),
            (3, 1, 2, 1.0),
            (3, 1, 1, 0.0),
            (1, 1, 0, 1.0),
        )
    ]
    module = _Decoder(_for_export(sam)).eval()
    return _export(module, trials, path, inputs, outputs, opset=opset, tolerance=tolerance)


def _for_export(sam: Sam) -> Sam:
    """Copy the model with constants precomputed and channel norms and consecutive linear maps as one operator each."""
    sam = copy.deepcopy(sam).eval().requires_grad_(False)
    for module in list(sam.modules()):
        for name, child in module.named_children():
            if isinstance(child, LayerNorm2d):
                setattr(module, name, _ChannelNorm(child))
            elif isinstance(child, Foldable):
                setattr(module, name, child.folded())
    position = sam.prompt_encoder.get_dense_pe().detach()
    sam.prompt_encoder.register_buffer("dense_position", position, persistent=False)
    sam.prompt_encoder.get_dense_pe = lambda: sam.prompt_encoder.dense_position
    return sam


def _export(
    module: nn.Module,
    trials: Sequence[tuple[Tensor, ...]],
    path: Path,
    inputs: Axes,
    outputs: Axes,
    *,
    opset: int,
    tolerance: float,
) -> dict[str, float]:
    dynamic = tuple(
        {i: torch.export.Dim(axis) for i, axis in enumerate(axes) if isinstance(axis, str)} for axes in inputs.values()
    )
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            module,
            trials[0],
            dynamo=True,
            opset_version=opset,
            input_names=list(inputs),
            output_names=list(outputs),
            dynamic_shapes=dynamic,
            verbose=False,
        )
    if program is None:
        raise RuntimeError(f"{path.name} was not exported")
    model = program.model_proto
    write(model, path, inputs, outputs)
    difference = _difference(path, module, trials, list(inputs))
    stem = path.stem
    if not difference <= tolerance:
        raise Refused(
            "export.max_difference",
            f"{path.name} differs from PyTorch by {difference:.3g}, more than export.max_difference {tolerance:g}: "
            "try another export.opset, or look for weights that are not finite.",
            value=difference,
            limit=tolerance,
        )
    return {f"{stem}_max_difference": difference, f"{stem}_nodes": float(len(model.graph.node))}


def write(model: onnx.ModelProto, path: Path, inputs: Axes, outputs: Axes) -> None:
    """Name the dynamic axes of an exported model, normalise it, check it, and write it.

    Raises:
        Refused: The model breaks a rule of `pipeline.export.rules`.
    """
    _name_axes(model.graph.input, inputs)
    _name_axes(model.graph.output, outputs)
    save(model, path)


def _name_axes(values: Any, axes: Axes) -> None:
    for value in values:
        for dimension, axis in zip(value.type.tensor_type.shape.dim, axes[value.name], strict=True):
            if isinstance(axis, str):
                dimension.dim_param = axis
            else:
                dimension.dim_value = axis


def _difference(path: Path, module: nn.Module, trials: Sequence[tuple[Tensor, ...]], names: list[str]) -> float:
    """Largest absolute difference between a file in ONNX Runtime and its module; infinite if an output is NaN."""
    from pipeline.runtime.onnxruntime import open_session

    session, largest = open_session(path), 0.0
    for trial in trials:
        results = session.run(None, {name: value.numpy() for name, value in zip(names, trial, strict=True)})
        with torch.inference_mode():
            expected = module(*trial)
        for result, value in zip(results, expected if isinstance(expected, tuple) else (expected,), strict=True):
            distance = float(np.abs(result - value.numpy()).max(initial=0.0))
            largest = max(largest, distance) if np.isfinite(distance) else float("inf")
    return largest


@contextmanager
def _quiet() -> Iterator[None]:
    """Suppress the exporter's deprecation warnings; errors are still shown."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
