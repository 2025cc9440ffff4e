"""Rules for the ONNX files of students, so that all engines accept them unchanged.

Sources: NVIDIA TensorRT's documentation, "Explicit Quantization" (zero points of 0, one scale per output channel of
weights, one scale per activation, biases never quantized) and the operator table of onnx-tensorrt. Differences: int8
weights must be stored as int8, which TensorRT only allows, because the file is then a quarter as large; and operators
that TensorRT supports only with data-dependent shapes or slow kernels are refused (`FORBIDDEN`).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from jaxtyping import Shaped
from onnx import ModelProto, NodeProto, TensorProto, numpy_helper

from pipeline.core.errors import Refused
from pipeline.export.saturation import factor_ranges
from pipeline.ops.cpu import EXACT_FACTOR

RULES = "export.rules"
"""Rule name in the refusals of this module; the reason says which rule is broken."""
OPSETS = range(18, 24)
DYNAMIC_AXES = frozenset({"batch", "masks", "prompts", "points"})
LOWERED = ("Conv", "MatMul", "Gemm")
"""Operators whose inputs may be int8. Transposed convolutions are slower in int8 than in fp16 on TensorRT."""
FORBIDDEN = frozenset(
    {
        "BatchNormalization", "Compress", "If", "Loop", "NonZero", "OneHot", "RandomNormal", "RandomUniform", "Scan",
        "ScatterElements", "ScatterND", "Tile", "Unique",
    }
)  # fmt: skip
"""Operators that engines reject or run slowly: data-dependent shapes, control flow, and unfolded norms."""
DOCUMENTED = frozenset(
    {
        "Abs", "Add", "And", "ArgMax", "ArgMin", "AveragePool", "Cast", "Ceil", "Clip", "Concat", "Constant",
        "ConstantOfShape", "Conv", "ConvTranspose", "Cos", "CumSum", "DepthToSpace", "DequantizeLinear",
        "Div", "Einsum", "Elu", "Equal", "Erf", "Exp", "Expand", "Flatten", "Floor", "Gather",
        "GatherElements", "GatherND", "Gelu", "Gemm", "GlobalAveragePool", "Greater", "GreaterOrEqual",
        "HardSigmoid", "HardSwish", "Identity", "InstanceNormalization", "LayerNormalization", "LeakyRelu",
        "Less", "LessOrEqual", "Log", "LogSoftmax", "MatMul", "Max", "MaxPool", "Mean", "Min", "Mod", "Mul",
        "Neg", "Not", "Or", "Pad", "Pow", "QuantizeLinear", "Range", "Reciprocal", "ReduceL2",
        "ReduceLogSumExp", "ReduceMax", "ReduceMean", "ReduceMin", "ReduceProd", "ReduceSum", "Relu",
        "Reshape", "Resize", "Round", "Shape", "Sigmoid", "Sign", "Sin", "Size", "Slice", "Softmax",
        "Softplus", "SpaceToDepth", "Split", "Sqrt", "Squeeze", "Sub", "Sum", "Tan", "Tanh", "TopK",
        "Transpose", "Trilu", "Unsqueeze", "Where", "Xor",
    }
)  # fmt: skip
"""Operators of TensorRT's table that students may use."""


@dataclass(frozen=True)
class _Graph:
    """A graph with lookup tables."""

    nodes: Sequence[NodeProto]
    constants: Mapping[str, TensorProto]
    made_by: Mapping[str, NodeProto]
    readers: Mapping[str, list[NodeProto]]
    outputs: frozenset[str]

    @classmethod
    def of(cls, model: ModelProto) -> "_Graph":
        readers: dict[str, list[NodeProto]] = {}
        for node in model.graph.node:
            for name in filter(None, node.input):
                readers.setdefault(name, []).append(node)
        return cls(
            nodes=model.graph.node,
            constants={constant.name: constant for constant in model.graph.initializer},
            made_by={name: node for node in model.graph.node for name in node.output},
            readers=readers,
            outputs=frozenset(value.name for value in model.graph.output),
        )

    def value(self, name: str) -> Shaped[np.ndarray, "..."] | None:
        return numpy_helper.to_array(self.constants[name]) if name in self.constants else None

    def dequantizer(self, name: str) -> NodeProto | None:
        node = self.made_by.get(name)
        return node if node is not None and node.op_type == "DequantizeLinear" else None


def check_onnx(model: ModelProto, name: str, *, reduce_range: bool = False) -> None:
    """Check a model against every rule.

    Args:
        model: A model with named nodes.
        name: File name for errors.
        reduce_range: Also check that no sum of two int8 products saturates.

    Raises:
        Refused: A rule is broken; the message names the node and the remedy.
    """
    graph = _Graph.of(model)
    for fault in (*_operators(model, graph), *_axes(model), *_placement(graph)):
        raise Refused(RULES, f"{name}: {fault}")
    if reduce_range:
        for node, reach in factor_ranges(model).items():
            if reach > EXACT_FACTOR:
                reason = (
                    f"{name}: {node} multiplies int8 values of up to {reach}, beyond the {EXACT_FACTOR} that never "
                    "saturate on processors: quantize with quantize.reduce_range."
                )
                raise Refused(RULES, reason, value=float(reach), limit=float(EXACT_FACTOR))
    try:
        onnx.checker.check_model(model, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise Refused(RULES, f"{name} is no valid ONNX model: {str(error)[:300]}.") from None


def _operators(model: ModelProto, graph: _Graph) -> Iterator[str]:
    versions = {entry.domain: entry.version for entry in model.opset_import}
    if set(versions) != {""} or versions[""] not in OPSETS:
        yield (
            f"operators of {versions}, where ONNX's own of version {OPSETS[0]} to {OPSETS[-1]} are expected: "
            "change export.opset."
        )
    for node in graph.nodes:
        if node.domain or node.op_type in FORBIDDEN or node.op_type not in DOCUMENTED:
            yield (
                f"{node.name} is a {node.op_type}, an operator that engines refuse or TensorRT does not document: "
                "rewrite that part of the model."
            )


def _axes(model: ModelProto) -> Iterator[str]:
    for value in (*model.graph.input, *model.graph.output):
        for i, axis in enumerate(value.type.tensor_type.shape.dim):
            if not (axis.dim_value > 0 or axis.dim_param in DYNAMIC_AXES):
                yield (
                    f"axis {i} of {value.name} is {axis.dim_param or 'unknown'!r}; only "
                    f"{', '.join(sorted(DYNAMIC_AXES))} may be dynamic: export it with a fixed size."
                )


def _placement(graph: _Graph) -> Iterator[str]:
    for kind, rules in (
        ("QuantizeLinear", (_numbers, _quantizer)),
        ("DequantizeLinear", (_numbers, _dequantizer)),
    ):
        for node in graph.nodes:
            if node.op_type == kind:
                for rule in rules:
                    yield from rule(graph, node)
    for node in graph.nodes:
        yield from _reader(graph, node)


def _numbers(graph: _Graph, node: NodeProto) -> Iterator[str]:
    scale = graph.value(node.input[1])
    zero_point = graph.value(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    if scale is None or not (np.isfinite(scale) & (scale > 0)).all():
        yield f"{node.name} needs a constant scale that is finite and above 0."
    if zero_point is None or zero_point.dtype != np.int8:
        yield f"{node.name} has no int8 zero point: without one ONNX means unsigned values."
    elif zero_point.any():
        yield f"{node.name} has a zero point other than 0: engines take symmetric int8 only."


def _quantizer(graph: _Graph, node: NodeProto) -> Iterator[str]:
    scale = graph.value(node.input[1])
    if node.input[0] in graph.constants:
        yield f"{node.name} rounds the constant {node.input[0]} each time: store it as int8."
    elif scale is not None and scale.size != 1:
        yield f"{node.name} rounds an activation with {scale.size} scales: engines take one."
    if graph.dequantizer(node.input[0]) is not None:
        yield f"{node.name} rounds what {graph.made_by[node.input[0]].name} has just widened: round once."
    after = graph.readers.get(node.output[0], [])
    if not after or any(reader.op_type != "DequantizeLinear" for reader in after) or node.output[0] in graph.outputs:
        yield f"{node.name} dangles: a DequantizeLinear alone may read what it gives."
    for reader in after:
        if reader.op_type == "DequantizeLinear" and not np.array_equal(graph.value(reader.input[1]), scale):  # type: ignore[arg-type]
            yield f"{reader.name} widens with another scale than {node.name} rounds with."


def _dequantizer(graph: _Graph, node: NodeProto) -> Iterator[str]:
    constant, maker = graph.constants.get(node.input[0]), graph.made_by.get(node.input[0])
    if constant is None and (maker is None or maker.op_type != "QuantizeLinear"):
        yield f"{node.name} dangles: no QuantizeLinear gives what it widens."
    if constant is not None and constant.data_type != TensorProto.INT8:
        kind = TensorProto.DataType.Name(constant.data_type).lower()
        yield f"{node.name} widens {node.input[0]} of type {kind}: weights are int8, and biases are not rounded."
    if not any(_takes_int8(graph, reader, node.output[0]) for reader in graph.readers.get(node.output[0], [])):
        yield f"{node.name} dangles: no {', '.join(LOWERED)} reads what it widens."


def _takes_int8(graph: _Graph, node: NodeProto, name: str) -> bool:
    """Whether a node reads ``name``, directly or through a cast, as one of the two factors of int8 arithmetic."""
    if node.op_type == "Cast":
        return any(_takes_int8(graph, reader, node.output[0]) for reader in graph.readers.get(node.output[0], []))
    return node.op_type in LOWERED and name in node.input[:2]


def _reader(graph: _Graph, node: NodeProto) -> Iterator[str]:
    widened = [_widened(graph, name) for name in node.input]
    if node.op_type in ("Conv", "Gemm", "ConvTranspose") and len(node.input) > 2 and widened[2] is not None:
        yield f"{node.name} has a rounded bias: leave {node.input[2]} in floating point."
    if node.op_type not in LOWERED:
        return
    for name in node.input[:2]:
        maker = graph.made_by.get(name)
        if maker is not None and maker.op_type == "Cast" and (dequantizer := graph.dequantizer(maker.input[0])):
            yield (
                f"{node.name} reads {dequantizer.name} through {maker.name}, which keeps it from int8: give the "
                "DequantizeLinear a scale of the type that the layer computes in."
            )
    if (widened[0] is None) != (widened[1] is None) and _weight(graph, widened) is not None:
        yield f"{node.name} has a rounded weight but reads a tensor that is not rounded: round both or neither."
    weight = _weight(graph, widened)
    if weight is not None:
        yield from _per_channel(graph, node, weight)


def _widened(graph: _Graph, name: str) -> NodeProto | None:
    """The DequantizeLinear that produces a tensor, directly or through a cast."""
    maker = graph.made_by.get(name)
    if maker is not None and maker.op_type == "Cast":
        return graph.dequantizer(maker.input[0])
    return graph.dequantizer(name)


def _weight(graph: _Graph, widened: Sequence[NodeProto | None]) -> NodeProto | None:
    second = widened[1]
    return second if second is not None and second.input[0] in graph.constants else None


def _per_channel(graph: _Graph, node: NodeProto, dequantizer: NodeProto) -> Iterator[str]:
    shape = graph.constants[dequantizer.input[0]].dims
    axis = output_axis(node, len(shape))
    stored = next((a.i for a in dequantizer.attribute if a.name == "axis"), 1)
    scale = graph.value(dequantizer.input[1])
    if scale is not None and (scale.shape != (shape[axis],) or stored % len(shape) != axis):
        yield (
            f"{dequantizer.name} widens the weight of {node.name} with {scale.size} scales along axis {stored}: it "
            f"needs {shape[axis]} along axis {axis}, one for each output channel."
        )


def output_axis(node: NodeProto, rank: int) -> int:
    """Axis of the output channels in a node's weight."""
    if node.op_type == "Conv":
        return 0
    transposed = any(a.name == "transB" and a.i for a in node.attribute)
    return 0 if node.op_type == "Gemm" and transposed else rank - 1
