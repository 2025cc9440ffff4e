"""Fake quantization in floating point: one scale, or TinySAM's two ranges after softmax and after GELU."""

from collections.abc import Callable, Mapping
from typing import Literal

import torch
from jaxtyping import Float
from onnx import ModelProto
from torch import Tensor

from pipeline.quantize.qdq import qmax

Kind = Literal["plain", "gelu", "softmax"]
"""Ranges of a tensor: one; one on each side of 0; or one for small values and one up to 1."""
_GELU_LEAST = 0.17
"""GELU's minimum is -0.16997."""


def fake_quantize(
    x: Float[Tensor, "..."], scale: Float[Tensor, "..."], bits: int, kind: Kind = "plain"
) -> Float[Tensor, "..."]:
    """Round a tensor to ``bits`` signed bits and back.

    Args:
        x: Values.
        scale: Step size; may have additional leading dimensions, for candidates.
        bits: 2 to 8.
        kind: ``gelu`` rounds negative values in steps of GELU's negative range; ``softmax`` rounds values above the
            range of ``scale`` in steps of 1 over the largest value (twin ranges of TinySAM and PTQ4ViT). Both encode
            the range in place of the sign, which plain QDQ cannot.
    """
    top = qmax(bits)
    if kind == "plain":
        return (x / scale).round_().clamp_(-top - 1, top).mul_(scale)
    fine = (x / scale).round_().clamp_(0, top).mul_(scale)
    if kind == "gelu":
        step = _GELU_LEAST / (top + 1)
        return torch.where(x < 0, (x / step).round().clamp(-top - 1, 0) * step, fine)
    return torch.where(x > scale * top, (x * top).round().clamp(0, top) / top, fine)


def kinds(model: ModelProto) -> dict[str, Kind]:
    """Find tensors that are outputs of softmax or GELU, possibly reshaped."""
    made_by = {name: node for node in model.graph.node for name in node.output}
    constants = {constant.name for constant in model.graph.initializer}
    kind_of: dict[str, Kind] = {}
    for node in model.graph.node:
        if node.op_type == "Softmax":
            kind_of[node.output[0]] = "softmax"
        elif node.op_type == "Gelu" or (node.op_type == "Mul" and _is_gelu(node.output[0], made_by, constants)):
            kind_of[node.output[0]] = "gelu"
        elif node.op_type in ("Reshape", "Transpose") and node.input[0] in kind_of:
            kind_of[node.output[0]] = kind_of[node.input[0]]
    return kind_of


def _is_gelu(name: str, made_by: Mapping[str, object], constants: set[str]) -> bool:
    """Whether a product is ``x * (1 + erf(x))`` or ``x * (1 + tanh(x))``, with the factor 0.5 anywhere."""
    waiting, seen = [(name, 0)], list[str]()
    while waiting:
        current, depth = waiting.pop()
        node = made_by.get(current)
        if node is None or depth > 3:
            continue
        seen.append(node.op_type)  # type: ignore[attr-defined]
        if node.op_type in ("Add", "Mul"):  # type: ignore[attr-defined]
            waiting += [(n, depth + 1) for n in node.input if n not in constants]  # type: ignore[attr-defined]
    return bool({"Erf", "Tanh"} & set(seen))


def rounders(
    scales: Mapping[str, float], bits: Mapping[str, int], split: Mapping[str, Kind]
) -> dict[str, Callable[[Tensor], Tensor]]:
    """Build the rounding functions of `pipeline.quantize.graph.Graph`; everything is by tensor name."""

    def rounder(scale: float, bits: int, kind: Kind) -> Callable[[Tensor], Tensor]:
        return lambda x: fake_quantize(x, torch.tensor(scale), bits, kind)

    return {name: rounder(scale, bits[name], split.get(name, "plain")) for name, scale in scales.items()}
