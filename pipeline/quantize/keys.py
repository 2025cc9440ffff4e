"""Centering of attention keys with a bimodal distribution.

Source: PTQ4SAM (Lv et al. 2024, bimodal integration): in SAM, the output of the key projection is often bimodal over a
tensor, while each channel lies at one of the peaks; PTQ4SAM flips the signs of channels in keys and queries, which
leaves one peak for a quantizer with a zero point. What differs: engines require zero points of 0, and a symmetric grid
rounds a flipped channel as before, so flipping has no effect here. Instead, the center of each channel is subtracted
from the keys. This adds one number to all scores of a query, which softmax ignores: the function is unchanged, and the
range shrinks.
"""

from collections import defaultdict

import numpy as np
import onnx
import torch
from jaxtyping import Float, Float32
from onnx import ModelProto, NodeProto, helper, numpy_helper
from torch import Tensor

from pipeline.quantize.calibration import CalibrationData
from pipeline.quantize.graph import Graph

_BINS = 33
_VALLEY = 0.5
"""Keys are bimodal if the density around 0 is below this share of each side's peak."""
_PEAK_FROM = 0.25
"""Start of either side, as a share of the largest magnitude."""
_IMAGES = 4


def keys(model: ModelProto) -> dict[str, NodeProto]:
    """Find the product of queries and keys before each softmax, by the tensor of keys ``(..., d, n)``."""
    made_by = {name: node for node in model.graph.node for name in node.output}
    constants = {constant.name for constant in model.graph.initializer}
    products: dict[str, NodeProto] = {}
    for softmax in (node for node in model.graph.node if node.op_type == "Softmax"):
        waiting = [softmax.input[0]]
        while waiting:
            node = made_by.get(waiting.pop())
            if node is not None and node.op_type in ("Add", "Div", "Mul"):
                waiting += node.input
            elif node is not None and node.op_type == "MatMul" and not constants & set(node.input):
                products[node.input[1]] = node
    return products


def is_bimodal(values: Float[Tensor, "..."]) -> bool:
    """Whether values have a peak on either side of 0 and few values around it."""
    reach = float(values.abs().max())
    counts, edges = np.histogram(values.numpy(), _BINS, (-reach, reach) if reach else None)
    middle = (edges[1:] + edges[:-1]) / 2 / max(reach, 1e-30)
    left, right = counts[middle < -_PEAK_FROM].max(), counts[middle > _PEAK_FROM].max()
    return bool(counts[np.abs(middle) < _PEAK_FROM / 2].mean() < _VALLEY * min(left, right))


def centre_keys(model: ModelProto, data: CalibrationData) -> tuple[ModelProto, list[str]]:
    """Center bimodal keys; returns the new model and the names of the centered tensors.

    Args:
        model: The encoder in fp32; not changed.
        data: Its first calibration images are used.
    """
    asked, graph = keys(model), Graph(model)
    samples: dict[str, list[Tensor]] = {name: [] for name in asked}
    with torch.inference_mode():
        for index in data.chosen[:_IMAGES] if asked else ():
            values = graph(torch.from_numpy(data.pixels(index)), keep=set(asked))
            for name in asked:
                samples[name].append(values[name])
    result = ModelProto()
    result.CopyFrom(model)
    fixed, shifted = _fixed_axes(model), list[str]()
    for name, node in asked.items():
        every = torch.cat(samples[name])
        if is_bimodal(every):
            # Not over channels, nor over heads if they have an axis.
            along = [
                axis for axis in range(every.ndim) if axis != every.ndim - 2 and (axis != 1 or 1 not in fixed[name])
            ]
            middle = (every.amax(along, keepdim=True) + every.amin(along, keepdim=True)) / 2
            _subtract(result, node.name, name, middle.numpy())
            shifted.append(name)
    return result, shifted


def _fixed_axes(model: ModelProto) -> dict[str, set[int]]:
    """Axes whose size does not depend on the batch, for tensors of four axes."""
    values = onnx.shape_inference.infer_shapes(model, data_prop=True).graph.value_info
    sides = {value.name: value.type.tensor_type.shape.dim for value in values}
    fixed: dict[str, set[int]] = defaultdict(set)
    for name, dims in sides.items():
        fixed[name] = {i for i, side in enumerate(dims) if side.dim_value > 0 and len(dims) == 4}
    return fixed


def _subtract(model: ModelProto, product: str, name: str, middle: Float32[np.ndarray, "..."]) -> None:
    graph = model.graph
    graph.initializer.append(numpy_helper.from_array(middle, f"{name}_middle"))
    centred = helper.make_node("Sub", [name, f"{name}_middle"], [f"{name}_centred"], name=f"{name}_Sub")
    at = next(i for i, node in enumerate(graph.node) if node.name == product)
    graph.node[at].input[1] = f"{name}_centred"
    graph.node.insert(at, centred)
