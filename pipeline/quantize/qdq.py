"""Scales, and a graph written with them as QuantizeLinear and DequantizeLinear (QDQ).

The file has one form, whichever method finds the scales: symmetric signed values with zero points of 0, weights stored
as int8 with one scale per output channel, and activations rounded with one scale where they are computed. Norms, GELU,
softmax, additions, transposed convolutions and biases stay in floating point. If one of these reads a tensor that is
rounded for a product, it reads the rounded tensor: OpenVINO 2026.4 loses accuracy on graphs in which different readers
get different forms of a tensor.

Fewer bits are for studies: weights are int8 of a smaller range, activations are clipped before they are rounded. Such a
file computes what hardware of that width would, on any runtime, and is not faster.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from jaxtyping import Float32, Int8, Shaped
from onnx import ModelProto, NodeProto, helper, numpy_helper

from pipeline.core.errors import InputError
from pipeline.ops.cpu import EXACT_FACTOR
from pipeline.quantize.layers import Layer

_REDUCED_BITS = 7


@dataclass(frozen=True)
class Widths:
    """Bits of weights and activations."""

    weight_bits: int = 8
    activation_bits: int = 8
    reduce_range: bool = False
    """Limit weights to [-64, 64], and the second factors of products of two activations, which processors multiply as
    they multiply weights, to 7 bits."""

    @property
    def weight_qmax(self) -> int:
        """Largest integer of a stored weight."""
        return min(qmax(self.weight_bits), EXACT_FACTOR) if self.reduce_range else qmax(self.weight_bits)

    def bits_of(self, lowered: Sequence[Layer]) -> dict[str, int]:
        """Width in bits of each activation that layers read, by tensor."""
        widths = {name: self.activation_bits for layer in lowered for name in layer.inputs}
        second = {layer.inputs[1] for layer in lowered if layer.weight is None} if self.reduce_range else set()
        return widths | {name: min(self.activation_bits, _REDUCED_BITS) for name in second}


@dataclass(frozen=True)
class Scales:
    """Scales of activations and weights."""

    activations: Mapping[str, float]
    """Scale by tensor."""
    weights: Mapping[str, Float32[np.ndarray, " channels"]]
    """Scales by initializer, one per output channel."""
    widths: Widths = Widths()


def qmax(bits: int) -> int:
    """Largest value of ``bits`` signed bits."""
    return 2 ** (bits - 1) - 1


def weight_scales(weight: Float32[np.ndarray, "..."], axis: int, qmax: int) -> Float32[np.ndarray, " channels"]:
    """Scale of each output channel: its largest magnitude over ``qmax``, the largest stored integer."""
    others = tuple(i for i in range(weight.ndim) if i != axis)
    scale: Float32[np.ndarray, " channels"] = np.abs(weight).max(axis=others) / np.float32(qmax)
    return np.maximum(scale, np.float32(1e-12))


def rounded(
    weight: Float32[np.ndarray, "..."], scale: Float32[np.ndarray, " channels"], axis: int, qmax: int
) -> Int8[np.ndarray, "..."]:
    """Round a weight to multiples of its scales; the range is symmetric, as TensorRT requires."""
    shape = [-1 if i == axis else 1 for i in range(weight.ndim)]
    steps = np.rint(weight / scale.reshape(shape)).clip(-qmax, qmax)
    return np.asarray(steps, np.int8)


def write_qdq(model: ModelProto, lowered: Sequence[Layer], scales: Scales) -> ModelProto:
    """Copy a model with QuantizeLinear and DequantizeLinear before the inputs of ``lowered``.

    Args:
        model: The model in fp32.
        lowered: The layers to quantize.
        scales: Scales of all their tensors and weights; others are ignored.

    Raises:
        InputError: There is no layer, or a scale is missing.
    """
    if not lowered:
        raise InputError("no layer of the encoder would be int8: shorten quantize.keep.")
    result = ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    tensors = scales.widths.bits_of(lowered)
    axes = {layer.weight: layer.axis for layer in lowered if layer.weight}
    missing = [name for name in tensors if name not in scales.activations]
    missing += [name for name in axes if name not in scales.weights]
    if missing:
        raise InputError(f"calibration found no scale for {missing[0]}: try another quantize.method.")
    zero = _constant(graph, "int8_zero", np.zeros((), np.int8))
    after: dict[str, list[NodeProto]] = {}
    for name in tensors:
        after[name] = _round_activation(graph, name, scales.activations[name], tensors[name], zero)
    front = [_store_weight(graph, name, axis, scales) for name, axis in axes.items()]
    renamed = {name: f"{name}_dequantized" for name in (*tensors, *axes)}
    nodes = [*front, *(n for value in graph.input for n in after.get(value.name, []))]
    for node in graph.node:
        for i, name in enumerate(node.input):
            # Another kind of node that reads the weight too keeps the original.
            if name in tensors or (name in axes and i == 1):
                node.input[i] = renamed[name]
        nodes.append(node)
        nodes += [n for name in node.output for n in after.get(name, [])]
    read = {name for node in nodes for name in node.input}
    nodes = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    constants = [c for c in graph.initializer if c.name in read]
    del graph.node[:], graph.initializer[:]
    graph.node.extend(nodes)
    graph.initializer.extend(constants)
    return result


def read_scales(model: ModelProto) -> dict[str, float]:
    """Read the scales of activations from a tool's QDQ graph, by tensor."""
    constants = {constant.name: constant for constant in model.graph.initializer}
    return {
        node.input[0]: float(numpy_helper.to_array(constants[node.input[1]]))
        for node in model.graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] not in constants
    }


def _round_activation(graph: onnx.GraphProto, name: str, scale: float, bits: int, zero: str) -> list[NodeProto]:
    step = _constant(graph, f"{name}_scale", np.array(scale, np.float32))
    nodes, source = list[NodeProto](), name
    if bits < 8:
        low = _constant(graph, f"{name}_low", np.array(-(qmax(bits) + 1) * scale, np.float32))
        high = _constant(graph, f"{name}_high", np.array(qmax(bits) * scale, np.float32))
        source = f"{name}_clipped"
        nodes.append(helper.make_node("Clip", [name, low, high], [source], name=f"{name}_Clip"))
    steps, out = f"{name}_quantized", f"{name}_dequantized"
    nodes.append(helper.make_node("QuantizeLinear", [source, step, zero], [steps], name=f"{name}_QuantizeLinear"))
    nodes.append(helper.make_node("DequantizeLinear", [steps, step, zero], [out], name=f"{name}_DequantizeLinear"))
    return nodes


def _store_weight(graph: onnx.GraphProto, name: str, axis: int, scales: Scales) -> NodeProto:
    weight = numpy_helper.to_array(next(c for c in graph.initializer if c.name == name))
    scale = np.asarray(scales.weights[name], np.float32)
    steps = _constant(graph, f"{name}_quantized", rounded(weight, scale, axis, scales.widths.weight_qmax))
    step = _constant(graph, f"{name}_scale", scale)
    zero = _constant(graph, f"{name}_zero", np.zeros(scale.shape, np.int8))
    return helper.make_node(
        "DequantizeLinear", [steps, step, zero], [f"{name}_dequantized"], name=f"{name}_DequantizeLinear", axis=axis
    )


def _constant(graph: onnx.GraphProto, name: str, value: Shaped[np.ndarray, "..."]) -> str:
    graph.initializer.append(numpy_helper.from_array(value, name))
    return name
