"""Normal form of ONNX files: the same weights give the same bytes.

Nodes are renamed, equal integer constants are stored once, and source lines and paths are removed.
"""

from pathlib import Path

import onnx

from pipeline.export.rules import check_onnx


def save(model: onnx.ModelProto, path: Path, *, reduce_range: bool = False) -> dict[str, float]:
    """Normalise a model, check it, and write it.

    Args:
        model: Modified in place.
        path: Output file.
        reduce_range: Also check that int8 arithmetic cannot saturate (`pipeline.export.saturation`).

    Returns:
        Counts of QuantizeLinear and DequantizeLinear nodes; empty if there are none.

    Raises:
        Refused: The model breaks a rule of `pipeline.export.rules`.
    """
    _share_integers(model.graph)
    normalise(model)
    check_onnx(model, path.name, reduce_range=reduce_range)
    path.write_bytes(model.SerializeToString(deterministic=True))
    kinds = [node.op_type for node in model.graph.node]
    counts = {
        "quantize_linear_nodes": float(kinds.count("QuantizeLinear")),
        "dequantize_linear_nodes": float(kinds.count("DequantizeLinear")),
    }
    return counts if any(counts.values()) else {}


def _share_integers(graph: onnx.GraphProto) -> None:
    """Store equal integer constants once: TinyViT's blocks repeat the same offsets, a tenth of an int8 file."""
    first: dict[tuple[int, tuple[int, ...], bytes], str] = {}
    replacements: dict[str, str] = {}
    for constant in list(graph.initializer):
        if constant.data_type in (onnx.TensorProto.INT32, onnx.TensorProto.INT64) and constant.raw_data:
            name = first.setdefault((constant.data_type, tuple(constant.dims), constant.raw_data), constant.name)
            if name != constant.name:
                replacements[constant.name] = name
                graph.initializer.remove(constant)
    for node in graph.node:
        for i, name in enumerate(node.input):
            node.input[i] = replacements.get(name, name)


def normalise(model: onnx.ModelProto) -> None:
    """Remove everything but the computation from a model and number its nodes."""
    model.producer_name, model.producer_version, model.doc_string = "", "", ""
    del model.metadata_props[:]
    graph = model.graph
    graph.name, graph.doc_string = "graph", ""
    del graph.metadata_props[:], graph.value_info[:]
    for i, node in enumerate(graph.node):
        node.name, node.doc_string = f"{node.op_type}_{i}", ""
        del node.metadata_props[:]
    for part in (*graph.initializer, *graph.input, *graph.output):
        part.doc_string = ""
        del part.metadata_props[:]
