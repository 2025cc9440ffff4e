"""Interpreter of an exported encoder or decoder in PyTorch, in which any tensor can be rounded and has a gradient.

It runs the file's graph, not the module that was exported, so it rounds the same tensors as the QDQ file, under the
file's names. It supports the operators of the students' encoders and of SAM's decoder.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper
from torch import Tensor
from torch.nn import functional as F

from pipeline.core.errors import InputError

Attributes = Mapping[str, Any]
Rounding = Mapping[str, Callable[[Tensor], Tensor]]
"""Function applied to each named tensor when it is computed."""


class Graph:
    """An ONNX model as a function of PyTorch tensors.

    Args:
        model: An encoder or a decoder.

    Raises:
        InputError: The model has an unsupported operator.
    """

    def __init__(self, model: ModelProto) -> None:
        self.input, self.outputs = model.graph.input[0].name, [value.name for value in model.graph.output]
        self.output = self.outputs[0]
        self.constants = {c.name: torch.from_numpy(numpy_helper.to_array(c).copy()) for c in model.graph.initializer}
        self.nodes = [(node, _attributes(node)) for node in model.graph.node]
        for node, _ in self.nodes:
            if node.op_type not in _OPERATORS:
                raise InputError(f"{node.name} is a {node.op_type}, which cannot be simulated: add it to {__name__}.")
        self._last_use = {name: i for i, (node, _) in enumerate(self.nodes) for name in node.input}

    def __call__(
        self,
        inputs: Tensor | Mapping[str, Tensor],
        rounding: Rounding | None = None,
        constants: Mapping[str, Tensor] | None = None,
        keep: Collection[str] = (),
        fork: Mapping[str, Collection[str]] | None = None,
    ) -> dict[str, Tensor]:
        """Compute the graph.

        Args:
            inputs: All inputs by name, or the first one: an encoder's ``(B, 3, S, S)``.
            rounding: Applied to tensors when they are computed; all readers get the result.
            constants: Replacements of the model's constants, by name.
            keep: Names of tensors to return besides the output.
            fork: For a tensor, the nodes that read the original; all others read a copy, returned as ``<name>/copy``,
                so that the two have separate gradients.

        Returns:
            The outputs, and the tensors named by ``keep`` and ``fork``, by name.
        """
        rounding, fork = rounding or {}, fork or {}
        values: dict[str, Tensor] = self.constants | dict(constants or {})
        kept: dict[str, Tensor] = {}

        def put(name: str, value: Tensor) -> None:
            values[name] = rounding[name](value) if name in rounding else value
            if name in keep:
                kept[name] = values[name]
            if name in fork:
                values[f"{name}/copy"] = kept[f"{name}/copy"] = values[name] + 0

        for name, value in ({self.input: inputs} if isinstance(inputs, Tensor) else inputs).items():
            put(name, value)
        for i, (node, attributes) in enumerate(self.nodes):
            names = [f"{name}/copy" if name in fork and node.name not in fork[name] else name for name in node.input]
            results = _OPERATORS[node.op_type](attributes, *(values[name] if name else None for name in names))
            for name, value in zip(node.output, results if isinstance(results, tuple) else (results,), strict=False):
                put(name, value)
            for name in node.input:
                if self._last_use[name] == i and name not in self.constants and name not in self.outputs:
                    values.pop(name, None)
        return kept | {name: values[name] for name in self.outputs}

    def node(self, name: str, values: Mapping[str, Tensor]) -> Tensor:
        """Compute one node from ``values``, or the model's constants for names absent there."""
        node, attributes = next((n, a) for n, a in self.nodes if n.name == name)
        known = self.constants | dict(values)
        result = _OPERATORS[node.op_type](attributes, *(known[name] if name else None for name in node.input))
        return result[0] if isinstance(result, tuple) else result


def _attributes(node: NodeProto) -> dict[str, Any]:
    values = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


def _ints(value: Tensor) -> list[int]:
    return [int(v) for v in value.flatten()]


def _conv(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    pads = list(a.get("pads", [0, 0, 0, 0]))
    if pads[:2] != pads[2:]:
        x, pads = F.pad(x, (pads[1], pads[3], pads[0], pads[2])), [0, 0]
    return F.conv2d(x, weight, bias, a.get("strides", 1), pads[:2], a.get("dilations", 1), a.get("group", 1))


def _gemm(a: Attributes, x: Tensor, y: Tensor, z: Tensor | None = None) -> Tensor:
    product = (x.T if a.get("transA") else x) @ (y.T if a.get("transB") else y) * a.get("alpha", 1.0)
    return product if z is None else product + a.get("beta", 1.0) * z


def _reshape(a: Attributes, x: Tensor, shape: Tensor) -> Tensor:
    sides = _ints(shape)
    return x.reshape([x.shape[i] if side == 0 and not a.get("allowzero") else side for i, side in enumerate(sides)])


def _slice(
    a: Attributes, x: Tensor, starts: Tensor, ends: Tensor, axes: Tensor | None = None, steps: Tensor | None = None
) -> Tensor:
    most = max(x.shape)  # the exporter writes the largest integer for an open end
    begin, end = ([min(v, most) for v in _ints(bounds)] for bounds in (starts, ends))
    along = _ints(axes) if axes is not None else list(range(len(begin)))
    stride = _ints(steps) if steps is not None else [1] * len(begin)
    index = [slice(None)] * x.ndim
    for axis, *part in zip(along, begin, end, stride, strict=True):
        index[axis] = slice(*part)
    return x[tuple(index)]


def _split(a: Attributes, x: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, ...]:
    axis = a.get("axis", 0)
    if sizes is not None:
        return torch.split(x, _ints(sizes), axis)
    return torch.chunk(x, a["num_outputs"], axis)


def _pad(a: Attributes, x: Tensor, pads: Tensor, value: Tensor | None = None, axes: Tensor | None = None) -> Tensor:
    amounts = _ints(pads)
    along = _ints(axes) if axes is not None else list(range(x.ndim))
    sides = [(0, 0)] * x.ndim
    for i, axis in enumerate(along):
        sides[axis] = (amounts[i], amounts[i + len(along)])
    flat = [amount for side in reversed(sides) for amount in side]
    return F.pad(x, flat, value=float(value) if value is not None else 0.0)


def _resize(a: Attributes, x: Tensor, roi: Any = None, scales: Tensor | None = None, sizes: Any = None) -> Tensor:
    mode = {"cubic": "bicubic", "linear": "bilinear", "nearest": "nearest"}[a.get("mode", "nearest")]
    factors = [] if scales is None else scales.tolist()
    sides = _ints(sizes)[2:] if sizes is not None else [int(n * s) for n, s in zip(x.shape, factors, strict=True)][2:]
    return F.interpolate(x, size=sides, mode=mode, align_corners=None if mode == "nearest" else False)


def _gather(a: Attributes, x: Tensor, indices: Tensor) -> Tensor:
    axis = a.get("axis", 0)
    picked = x.index_select(axis, indices.flatten().long() % x.shape[axis])
    return picked.reshape(*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :])


def _squeeze(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(_ints(axes))


def _unsqueeze(a: Attributes, x: Tensor, axes: Tensor) -> Tensor:
    along = _ints(axes)
    for axis in sorted(axis % (x.ndim + len(along)) for axis in along):
        x = x.unsqueeze(axis)
    return x


def _norm(a: Attributes, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.layer_norm(x, x.shape[a.get("axis", -1) :], weight, bias, a.get("epsilon", 1e-5))


def _shape(a: Attributes, x: Tensor) -> Tensor:
    return torch.tensor(x.shape[a.get("start", 0) : a.get("end")])


def _cast(a: Attributes, x: Tensor) -> Tensor:
    return x.to(torch.from_numpy(np.zeros((), helper.tensor_dtype_to_np_dtype(a["to"]))).dtype)


def _constant_of_shape(a: Attributes, shape: Tensor) -> Tensor:
    value: TensorProto | None = a.get("value")
    filler = torch.from_numpy(numpy_helper.to_array(value).copy()) if value is not None else torch.zeros(1)
    return filler.expand(_ints(shape))


def _reduced(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    def reduce(a: Attributes, x: Tensor, axes: Tensor | None = None) -> Tensor:
        along: Sequence[int] = _ints(axes) if axes is not None else a.get("axes", list(range(x.ndim)))
        return function(x, dim=list(along), keepdim=bool(a.get("keepdims", 1)))

    return reduce


_OPERATORS: Mapping[str, Callable[..., Tensor | tuple[Tensor, ...]]] = {
    "Add": lambda a, x, y: x + y,
    "Cast": _cast,
    "Clip": lambda a, x, low=None, high=None: x.clamp(low, high),
    "Concat": lambda a, *parts: torch.cat(parts, a["axis"]),
    "ConstantOfShape": _constant_of_shape,
    "Conv": _conv,
    "Cos": lambda a, x: x.cos(),
    "Div": lambda a, x, y: x / y if x.is_floating_point() else x // y,
    "Equal": lambda a, x, y: x == y,
    "Erf": lambda a, x: x.erf(),
    "Exp": lambda a, x: x.exp(),
    "Expand": lambda a, x, shape: x.expand(torch.broadcast_shapes(x.shape, _ints(shape))),
    "Gather": _gather,
    "Gelu": lambda a, x: F.gelu(x, approximate=a.get("approximate", "none")),
    "Gemm": _gemm,
    "Identity": lambda a, x: x,
    "LayerNormalization": _norm,
    "Log": lambda a, x: x.log(),
    "MatMul": lambda a, x, y: x @ y,
    "Max": lambda a, *x: torch.stack(torch.broadcast_tensors(*x)).amax(0),
    "Min": lambda a, *x: torch.stack(torch.broadcast_tensors(*x)).amin(0),
    "Mul": lambda a, x, y: x * y,
    "Neg": lambda a, x: -x,
    "Pad": _pad,
    "Pow": lambda a, x, y: x**y,
    "Range": lambda a, start, limit, delta: torch.arange(start.item(), limit.item(), delta.item(), dtype=start.dtype),
    "Reciprocal": lambda a, x: 1 / x,
    "ReduceMax": _reduced(torch.amax),
    "ReduceMean": _reduced(torch.mean),
    "ReduceSum": _reduced(torch.sum),
    "Relu": lambda a, x: x.relu(),
    "Reshape": _reshape,
    "Resize": _resize,
    "Shape": _shape,
    "Sin": lambda a, x: x.sin(),
    "Slice": _slice,
    "Softmax": lambda a, x: x.softmax(a.get("axis", -1)),
    "Split": _split,
    "Sqrt": lambda a, x: x.sqrt(),
    "Squeeze": _squeeze,
    "Sub": lambda a, x, y: x - y,
    "Tanh": lambda a, x: x.tanh(),
    "Transpose": lambda a, x: x.permute(a["perm"]),
    "Unsqueeze": _unsqueeze,
}
