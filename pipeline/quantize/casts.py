"""Removal of the Cast nodes that AutoCast puts between a DequantizeLinear and the layer that reads it.

Where a layer stays in fp32, AutoCast nevertheless stores the scales of its inputs in fp16 and casts what they give. An
engine computes a layer in int8 only if it reads the DequantizeLinear itself. A DequantizeLinear gives the type of its
scale, so one with a scale in fp32, of the same value, needs no Cast.
"""

from collections import defaultdict

import numpy as np
import onnx
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper


def remove_casts(model: ModelProto) -> int:
    """Give readers in fp32 a DequantizeLinear in fp32 instead of a Cast; what they read is no longer rounded to fp16.

    Args:
        model: Changed in place. Readers of the same tensor in fp16 keep theirs.

    Returns:
        Number of Cast nodes removed.
    """
    graph = model.graph
    constants = {constant.name: constant for constant in graph.initializer}
    readers = defaultdict[str, list[NodeProto]](list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    nodes, dropped, removed = list[NodeProto](), set[str](), 0
    for node in graph.node:
        nodes.append(node)
        result = node.output[0]
        casts = [reader for reader in readers[result] if _casts_to_fp32(reader)]
        if node.op_type != "DequantizeLinear" or not casts:
            continue
        wide = f"{result}_fp32"
        scale = numpy_helper.to_array(constants[node.input[1]]).astype(np.float32)
        graph.initializer.append(numpy_helper.from_array(scale, f"{wide}_scale"))
        copy = onnx.NodeProto.FromString(node.SerializeToString())
        copy.name, copy.input[1], copy.output[0] = wide, f"{wide}_scale", wide
        nodes.append(copy)
        for cast in casts:
            for reader in readers[cast.output[0]]:
                reader.input[:] = [wide if name == cast.output[0] else name for name in reader.input]
        dropped |= {cast.output[0] for cast in casts}
        removed += len(casts)
        if len(casts) == len(readers[result]):
            dropped.add(result)
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes if node.output[0] not in dropped]
    read = {name for node in kept for name in node.input}
    initializers = [constant for constant in graph.initializer if constant.name in read]
    del graph.node[:], graph.initializer[:], graph.value_info[:]
    graph.node.extend(kept)
    graph.initializer.extend(initializers)
    return removed


def _casts_to_fp32(node: NodeProto) -> bool:
    return node.op_type == "Cast" and helper.get_node_attr_value(node, "to") == TensorProto.FLOAT
