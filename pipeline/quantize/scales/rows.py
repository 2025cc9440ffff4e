"""Samples of layers' inputs and output Hessians, from each calibration image.

A layer is a product of rows with a matrix: patches with kernels in a convolution, tokens with weights in a linear map.
The distance between a rounded and an unrounded output is a sum over rows. A random sample of rows estimates it at a
cost that depends neither on the image's size nor on the layer's stride.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from onnx import ModelProto
from torch import Tensor
from torch.nn import functional as F

from pipeline.core.progress import progress
from pipeline.quantize.calibration import SearchData
from pipeline.quantize.graph import Graph
from pipeline.quantize.layers import Layer
from pipeline.quantize.task import squared_gradients


@dataclass
class Rows:
    """Samples of one layer, from all images."""

    left: list[Tensor] = field(default_factory=list)
    """``(groups, rows, k)`` per image."""
    right: list[Tensor] = field(default_factory=list)
    """``(groups, k, n)`` per image, for products without a weight."""
    hessian: list[Tensor] = field(default_factory=list)
    """``(groups, rows, n)`` per image, of the outputs."""


@dataclass
class Samples:
    """Samples of all layers, and of tensors that other nodes read too."""

    rows: dict[str, Rows]
    """Samples by node."""
    values: dict[str, tuple[Tensor, Tensor]]
    """By tensor that other nodes read too: sampled values, and their Hessian."""
    peaks: dict[str, float]
    """Largest magnitude of each tensor."""


def collect(model: ModelProto, lowered: Sequence[Layer], data: SearchData, *, rows: int, seed: int) -> Samples:
    """Run the calibration images, and sample layers with the squared gradients of the loss.

    Args:
        model: The encoder or the decoder in fp32.
        lowered: The layers to sample.
        data: Inputs and loss.
        rows: Rows per layer, from all images together.
        seed: Seed of rows and drawn masks.
    """
    graph, generator = Graph(model), torch.Generator().manual_seed(seed)
    # In the order of the layers: the iteration order of a set differs between processes, and with it the draws.
    tensors = list(dict.fromkeys(name for layer in lowered for name in layer.inputs))
    readers = {name: {layer.node for layer in lowered if name in layer.inputs} for name in tensors}
    fork = {
        name: nodes
        for name, nodes in readers.items()
        if any(name in node.input and node.name not in nodes for node, _ in graph.nodes)
    }
    samples = Samples({layer.node: Rows() for layer in lowered}, {}, dict.fromkeys(tensors, 0.0))
    values: dict[str, list[tuple[Tensor, Tensor]]] = {name: [] for name in fork}
    each = max(1, rows // len(data.chosen))
    attributes = {node.name: values for node, values in graph.nodes}
    for index in progress(data.chosen, "observe", "image"):
        inputs_of = {name: torch.from_numpy(value).requires_grad_() for name, value in data.feeds(index).items()}
        values_of = graph(inputs_of, keep={*tensors, *(layer.output for layer in lowered)}, fork=fork)
        loss = data.loss([values_of[name] for name in graph.outputs], index, generator)
        differentiated = [*(layer.output for layer in lowered), *(f"{name}/copy" for name in fork)]
        hessians = squared_gradients(loss, {name: values_of[name] for name in differentiated})
        values_of = {name: value.detach() for name, value in values_of.items()}
        for name in tensors:
            samples.peaks[name] = max(samples.peaks[name], float(values_of[name].abs().max()))
        for layer in lowered:
            inputs = [values_of[name] for name in layer.inputs]
            _sample(samples.rows[layer.node], layer, attributes[layer.node], graph, inputs, hessians, each, generator)
        for name in fork:
            flat, hessian = values_of[name].flatten(), hessians[f"{name}/copy"].flatten()
            indices = torch.randint(len(flat), (min(len(flat), 64 * each),), generator=generator)
            values[name].append((flat[indices], hessian[indices] * (len(flat) / len(indices))))
    samples.values = {
        name: (torch.cat([v for v, _ in parts]), torch.cat([h for _, h in parts])) for name, parts in values.items()
    }
    return samples


def _sample(
    rows: Rows,
    layer: Layer,
    attributes: Mapping[str, object],
    graph: Graph,
    inputs: Sequence[Tensor],
    hessians: Mapping[str, Tensor],
    count: int,
    generator: torch.Generator,
) -> None:
    hessian = hessians[layer.output]
    if layer.op == "Conv":
        indices = torch.randperm(hessian.shape[2] * hessian.shape[3], generator=generator)[:count]
        kernel = graph.constants[str(layer.weight)]
        rows.left.append(_patches(inputs[0], kernel, attributes, indices, hessian.shape[3]))
        groups = int(attributes.get("group", 1))  # type: ignore[call-overload]
        picked = hessian[0].flatten(1)[:, indices].unflatten(0, (groups, -1)).transpose(1, 2)
        rows.hessian.append(picked * (hessian.shape[2] * hessian.shape[3] / len(indices)))
    elif layer.weight:
        flat, weight = inputs[0].flatten(0, -2), hessian.flatten(0, -2)
        indices = torch.randperm(len(flat), generator=generator)[:count]
        rows.left.append(flat[indices][None])
        rows.hessian.append(weight[indices][None] * (len(flat) / len(indices)))
    else:
        _sample_product(rows, inputs, hessian, count, generator)


def _sample_product(
    rows: Rows, inputs: Sequence[Tensor], hessian: Tensor, count: int, generator: torch.Generator
) -> None:
    """Sample rows of some matrices of a product of activations."""
    sides = hessian.shape[:-2]
    left, right = (x.expand(*sides, *x.shape[-2:]).flatten(0, -3) for x in inputs)
    weight = hessian.flatten(0, -3)
    which = torch.randperm(len(left), generator=generator)[:4]
    indices = torch.randperm(left.shape[1], generator=generator)[: max(1, count // 2)]
    rows.left.append(left[which][:, indices])
    rows.right.append(right[which])
    rows.hessian.append(weight[which][:, indices] * (weight.shape[0] * weight.shape[1] / (len(which) * len(indices))))


def _patches(
    x: Float[Tensor, "1 c h w"], kernel: Tensor, attributes: Mapping[str, object], indices: Tensor, width: int
) -> Float[Tensor, "groups p k"]:
    """Gather the input patches of some of a convolution's outputs."""
    pads: list[int] = list(attributes.get("pads", [0, 0, 0, 0]))  # type: ignore[call-overload]
    strides: list[int] = list(attributes.get("strides", [1, 1]))  # type: ignore[call-overload]
    dilations: list[int] = list(attributes.get("dilations", [1, 1]))  # type: ignore[call-overload]
    padded = F.pad(x, (pads[1], pads[3], pads[0], pads[2]))[0]
    height, across = kernel.shape[2:]
    top, left = indices // width * strides[0], indices % width * strides[1]
    ys = top[:, None, None] + dilations[0] * torch.arange(height)[None, :, None]
    xs = left[:, None, None] + dilations[1] * torch.arange(across)[None, None, :]
    groups = int(attributes.get("group", 1))  # type: ignore[call-overload]
    picked = padded[:, ys, xs].unflatten(0, (groups, -1))  # (groups, c, p, kh, kw)
    return picked.transpose(1, 2).flatten(2)
