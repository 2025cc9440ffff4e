"""The quantizable layers of an exported graph, under the names of the PyTorch modules."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

import numpy as np
from jaxtyping import Float32
from onnx import ModelProto, NodeProto, numpy_helper

from pipeline.core.errors import InputError
from pipeline.export.rules import LOWERED, output_axis


@dataclass(frozen=True)
class Layer:
    """A convolution, a product with a weight, or a product of two activations."""

    name: str
    """Name of the PyTorch module without ``image_encoder``, or of the node if the exporter kept none."""
    node: str
    op: str
    inputs: tuple[str, ...]
    """Quantized activations: one, or two for a product without a weight."""
    output: str
    weight: str | None
    axis: int
    """Axis of the weight's output channels."""


def layers(model: ModelProto) -> list[Layer]:
    """List all layers of a model, in the order of computation."""
    constants = {constant.name: constant for constant in model.graph.initializer}
    biases = {
        node.input[k]: node.input[1 - k]
        for node in model.graph.node
        if node.op_type == "Add"
        for k in (0, 1)
        if node.input[1 - k] in constants
    }
    quantizable = list[Layer]()
    for node in model.graph.node:
        if node.op_type not in LOWERED:
            continue
        weight = constants.get(node.input[1])
        if (weight is not None and len(weight.dims) < 2) or node.input[0] in constants:
            continue
        named = node.input[1] if weight is not None else ""
        if node.op_type == "MatMul" and "." not in named:  # the exporter folds a linear map's transposition
            named = biases.get(node.output[0], "")
        quantizable.append(
            Layer(
                name=named.removeprefix("image_encoder.").rpartition(".")[0] or node.name,
                node=node.name,
                op=node.op_type,
                inputs=tuple(node.input[:1] if weight is not None else node.input[:2]),
                output=node.output[0],
                weight=node.input[1] if weight is not None else None,
                axis=output_axis(node, len(weight.dims)) if weight is not None else -1,
            )
        )
    return _unique(quantizable)


def _unique(quantizable: list[Layer]) -> list[Layer]:
    """Replace names shared by several layers by the nodes' names: equal biases are stored once, under one name."""
    times = Counter(layer.name for layer in quantizable)
    return [layer if times[layer.name] == 1 else Layer(**(vars(layer) | {"name": layer.node})) for layer in quantizable]


def chosen_layers(model: ModelProto, *, attention: bool, keep: Sequence[str]) -> list[Layer]:
    """Choose the layers to quantize.

    Args:
        model: The encoder in fp32.
        attention: Include products of two activations, except those of linear attention, whose sums are unbounded.
        keep: Patterns of names, such as ``neck.*``, that stay in floating point.

    Raises:
        InputError: A pattern matches no layer.
    """
    every = layers(model)
    for pattern in keep:
        if not any(fnmatchcase(layer.name, pattern) for layer in every):
            known = ", ".join(layer.name for layer in every[:3])
            raise InputError(f"quantize.keep names {pattern!r}, which fits no layer: there is {known}, and so on.")
    linear = {node.name for node in linear_attention(model)}
    return [
        layer
        for layer in every
        if (layer.weight or (attention and layer.node not in linear))
        and not any(fnmatchcase(layer.name, pattern) for pattern in keep)
    ]


def weights(model: ModelProto, of: Sequence[Layer]) -> dict[str, Float32[np.ndarray, "..."]]:
    """Read the weights of layers, by the initializer's name."""
    wanted = {layer.weight for layer in of}
    return {
        constant.name: numpy_helper.to_array(constant)
        for constant in model.graph.initializer
        if constant.name in wanted
    }


def products(model: ModelProto) -> list[str]:
    """Names of matrix products without a weight, which are those of attention."""
    return [layer.node for layer in layers(model) if layer.weight is None]


def linear_attention(model: ModelProto) -> list[NodeProto]:
    """Find the sums of ReLU linear attention and the division by them, which exceed fp16's range.

    They are the ancestors, up to the matrix products, of a division of one activation by another.
    """
    constants = {constant.name for constant in model.graph.initializer}
    made_by = {name: node for node in model.graph.node for name in node.output}
    members: dict[str, NodeProto] = {}
    waiting = [n for n in model.graph.node if n.op_type == "Div" and not constants & set(n.input)]
    while waiting:
        node = waiting.pop()
        members[node.name] = node
        if node.op_type == "MatMul" and not any(_upstream(made_by, name, "MatMul") for name in node.input):
            continue
        before = [made_by[name] for name in node.input if name in made_by]
        waiting += [
            n for n in before if n.op_type in ("Clip", "Div", "MatMul", "ReduceSum", "Slice") and n.name not in members
        ]
    return list(members.values())


def _upstream(made_by: dict[str, NodeProto], name: str, op: str) -> bool:
    return name in made_by and made_by[name].op_type == op
