"""Check whether a file's int8 arithmetic can saturate on a CPU; see `pipeline.ops.cpu.EXACT_FACTOR`."""

from collections.abc import Mapping

import numpy as np
from onnx import ModelProto, NodeProto, numpy_helper

_INT8_REACH = 128
_PRODUCTS = ("Conv", "MatMul", "Gemm")


def factor_ranges(model: ModelProto) -> dict[str, int]:
    """Largest magnitude of the second factor of each int8 product, by node name.

    Args:
        model: A graph with QuantizeLinear and DequantizeLinear; a product counts where both factors are dequantized.
    """
    made_by = {name: node for node in model.graph.node for name in node.output}
    constants = {constant.name: numpy_helper.to_array(constant) for constant in model.graph.initializer}
    ranges = {}
    for node in model.graph.node:
        if node.op_type in _PRODUCTS:
            first, second = (_dequantizer(made_by, name) for name in node.input[:2])
            if first is not None and second is not None:
                ranges[node.name] = _reach(second, made_by, constants)
    return ranges


def weight_range(model: ModelProto) -> int:
    """The largest of `factor_ranges`; 0 for a model that computes nothing in int8."""
    return max(factor_ranges(model).values(), default=0)


def _dequantizer(made_by: Mapping[str, NodeProto], name: str) -> NodeProto | None:
    """The DequantizeLinear that produces a tensor, directly or through a cast."""
    node = made_by.get(name)
    if node is not None and node.op_type == "Cast":
        node = made_by.get(node.input[0])
    return node if node is not None and node.op_type == "DequantizeLinear" else None


def _reach(dequantizer: NodeProto, made_by: Mapping[str, NodeProto], constants: Mapping[str, np.ndarray]) -> int:
    stored = constants.get(dequantizer.input[0])
    if stored is not None:
        return int(np.abs(stored.astype(int)).max(initial=0))
    rounding = made_by[dequantizer.input[0]]
    clip = made_by.get(rounding.input[0])
    if clip is None or clip.op_type != "Clip":
        return _INT8_REACH
    bounds = [float(constants[name]) for name in clip.input[1:3]]
    return min(_INT8_REACH, round(max(map(abs, bounds)) / float(constants[rounding.input[1]])))
