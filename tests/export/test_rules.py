"""Each rule of an ONNX file: a graph that keeps all of them, and one that breaks it, named by its node."""

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import InferenceSession

from pipeline.core.errors import Refused
from pipeline.export.rules import DOCUMENTED, FORBIDDEN, check_onnx
from pipeline.quantize.layers import layers
from pipeline.quantize.qdq import Scales, Widths, qmax, weight_scales, write_qdq

rng = np.random.default_rng(0)
CONSTANTS = {
    "stem.weight": rng.normal(size=(4, 3, 3, 3)),
    "stem.bias": rng.normal(size=4),
    "up.weight": rng.normal(size=(4, 2, 2, 2)),
    "map.weight": rng.normal(size=(8, 5)),
    "map.bias": rng.normal(size=5),
}


def floating(nodes=(), batch="batch", opset=18):
    """A convolution with a bias, a transposed one, a product with a weight and one of two activations."""
    chain = [
        helper.make_node("Conv", ["image", "stem.weight", "stem.bias"], ["x"], name="stem", pads=[1, 1, 1, 1]),
        helper.make_node("ConvTranspose", ["x", "up.weight"], ["y"], name="up", strides=[2, 2]),
        helper.make_node("MatMul", ["y", "map.weight"], ["z"], name="map"),
        helper.make_node("Add", ["z", "map.bias"], ["a"], name="add"),
        helper.make_node("Transpose", ["a"], ["t"], name="turn", perm=[0, 1, 3, 2]),
        helper.make_node("MatMul", ["a", "t"], ["embedding"], name="product"),
        *nodes,
    ]
    graph = helper.make_graph(
        chain,
        "graph",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [batch, 3, 4, 4])],
        [helper.make_tensor_value_info("embedding", TensorProto.FLOAT, [batch, 2, 8, 8])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in CONSTANTS.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def lowered(bits=8):
    model = floating()
    every = layers(model)
    kernels = {
        layer.weight: (CONSTANTS[layer.weight].astype(np.float32), layer.axis) for layer in every if layer.weight
    }
    scales = {name: weight_scales(kernel, axis, qmax(bits)) for name, (kernel, axis) in kernels.items()}
    activations = {name: 0.01 for layer in every for name in layer.inputs}
    return write_qdq(model, every, Scales(activations, scales, Widths(bits, bits)))


def find(model, kind, reads):
    return next(n for n in model.graph.node if n.op_type == kind and any(reads in name for name in n.input))


def put(model, name, value):
    for constant in model.graph.initializer:
        if constant.name == name:
            constant.CopyFrom(numpy_helper.from_array(np.asarray(value), name))
            return
    model.graph.initializer.append(numpy_helper.from_array(np.asarray(value), name))


def shifted_zero_point(model):
    put(model, "int8_zero", np.int8(3))


def unsigned(model):
    put(model, "int8_zero", np.uint8(0))


def no_zero_point(model):
    del find(model, "QuantizeLinear", "image").input[2:]


def scale_of_zero(model):
    put(model, "image_scale", np.float32(0))


def other_scale(model):
    put(model, "odd", np.float32(0.5))
    find(model, "DequantizeLinear", "image_quantized").input[1] = "odd"


def dangling_quantizer(model):
    node = helper.make_node("QuantizeLinear", ["x", "image_scale", "int8_zero"], ["nobody"], name="lost")
    model.graph.node.insert(len(model.graph.node), node)


def dangling_dequantizer(model):
    names = ["stem.weight_quantized", "stem.weight_scale", "stem.weight_zero"]
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", names, ["nobody"], name="lost", axis=0))


def idle_rounding(model):
    names = ["x_rounded", "image_scale", "int8_zero"]
    quantizer = helper.make_node("QuantizeLinear", ["x", *names[1:]], ["x_rounded"], name="q")
    model.graph.node.extend([quantizer, helper.make_node("DequantizeLinear", names, ["x_back"], name="lost")])
    model.graph.node.append(helper.make_node("Relu", ["x_back"], ["x_relu"], name="relu"))


def rounded_bias(model):
    put(model, "bias8", np.zeros(4, np.int8))
    names = ["bias8", "image_scale", "int8_zero"]
    model.graph.node.insert(0, helper.make_node("DequantizeLinear", names, ["bias"], name="bias_widened"))
    next(n for n in model.graph.node if n.name == "stem").input[2] = "bias"


def int32_bias(model):
    rounded_bias(model)
    put(model, "bias8", np.zeros(4, np.int32))


def one_scale_for_a_weight(model):
    put(model, "stem.weight_scale", np.float32(0.1))
    put(model, "stem.weight_zero", np.int8(0))


def scales_along_inputs(model):
    attribute = find(model, "DequantizeLinear", "map.weight").attribute[0]
    attribute.i = 0
    put(model, "map.weight_scale", np.ones(8, np.float32))
    put(model, "map.weight_zero", np.zeros(8, np.int8))


def many_scales_for_an_activation(model):
    for name in ("image_scale", "int8_zero"):
        put(model, name, np.full(3, 0.01 if "scale" in name else 0, np.float32 if "scale" in name else np.int8))


def weight_rounded_each_time(model):
    node = find(model, "DequantizeLinear", "stem.weight")
    names = ["stem.weight", *node.input[1:]]
    put(model, "stem.weight", CONSTANTS["stem.weight"].astype(np.float32))
    model.graph.node.insert(0, helper.make_node("QuantizeLinear", names, ["steps"], name="rounds", axis=0))
    node.input[0] = "steps"


def rounded_twice(model):
    node = find(model, "QuantizeLinear", "a")
    again = helper.make_node("QuantizeLinear", ["a_dequantized", *node.input[1:]], ["steps"], name="twice")
    widened = helper.make_node("DequantizeLinear", ["steps", *node.input[1:]], ["back"], name="back")
    reader = next(n for n in model.graph.node if n.name == "product")
    reader.input[0] = "back"
    at = list(model.graph.node).index(reader)
    model.graph.node.insert(at, widened)
    model.graph.node.insert(at, again)


def half_rounded(model):
    next(n for n in model.graph.node if n.name == "map").input[0] = "y"
    for node in [n for n in model.graph.node if n.name in ("y_QuantizeLinear", "y_DequantizeLinear")]:
        model.graph.node.remove(node)


def cast_in_between(model):
    node = next(n for n in model.graph.node if n.name == "stem")
    cast = helper.make_node("Cast", [node.input[1]], ["between"], name="cast", to=TensorProto.FLOAT)
    node.input[1] = "between"
    model.graph.node.insert(list(model.graph.node).index(node), cast)


def test_a_model_in_floating_point_and_its_int8_form_pass():
    check_onnx(floating(), "encoder.onnx")
    for bits in (8, 6):
        check_onnx(lowered(bits), "encoder.onnx")


@pytest.mark.parametrize(
    ("harm", "node", "reason"),
    [
        (shifted_zero_point, "image_QuantizeLinear", "zero point other than 0"),
        (unsigned, "image_QuantizeLinear", "no int8 zero point"),
        (no_zero_point, "image_QuantizeLinear", "no int8 zero point"),
        (scale_of_zero, "image_QuantizeLinear", "finite and above 0"),
        (other_scale, "image_DequantizeLinear", "another scale than image_QuantizeLinear"),
        (dangling_quantizer, "lost", "a DequantizeLinear alone may read"),
        (dangling_dequantizer, "lost", "no Conv, MatMul, Gemm reads"),
        (idle_rounding, "lost", "no Conv, MatMul, Gemm reads"),
        (rounded_bias, "bias_widened", "dangles"),
        (int32_bias, "bias_widened", "of type int32: weights are int8, and biases are not rounded"),
        (one_scale_for_a_weight, "stem.weight_DequantizeLinear", "it needs 4 along axis 0"),
        (scales_along_inputs, "map.weight_DequantizeLinear", "it needs 5 along axis 1"),
        (many_scales_for_an_activation, "image_QuantizeLinear", "3 scales: engines take one"),
        (weight_rounded_each_time, "rounds", "store it as int8"),
        (rounded_twice, "twice", "round once"),
        (half_rounded, "map", "round both or neither"),
        (cast_in_between, "stem", "reads stem.weight_DequantizeLinear through cast, which keeps it from int8"),
    ],
)
def test_a_broken_rule_names_the_node(harm, node, reason):
    model = lowered()
    harm(model)
    with pytest.raises(Refused, match=rf"^encoder.onnx: {node} .*{reason}"):
        check_onnx(model, "encoder.onnx")


@pytest.mark.parametrize("kind", ["NonZero", "Loop", "Hardmax", "QLinearConv"])
def test_operators_that_engines_refuse_are_named(kind):
    model = floating([helper.make_node(kind, ["x"], ["w"], name="odd_one")])
    with pytest.raises(Refused, match=rf"decoder.onnx: odd_one is a {kind}"):
        check_onnx(model, "decoder.onnx")


def test_an_operator_of_another_domain_is_refused():
    node = helper.make_node("Relu", ["x"], ["w"], name="odd_one", domain="com.microsoft")
    with pytest.raises(Refused, match="odd_one is a Relu"):
        check_onnx(floating([node]), "encoder.onnx")


def test_no_operator_is_both_documented_and_forbidden():
    assert not DOCUMENTED & FORBIDDEN


@pytest.mark.parametrize("opset", [17, 24])
def test_other_versions_of_operators_are_refused(opset):
    with pytest.raises(Refused, match="version 18 to 23"):
        check_onnx(floating(opset=opset), "encoder.onnx")


def test_an_axis_that_is_neither_fixed_nor_known_is_refused():
    check_onnx(floating(batch=2), "encoder.onnx")
    with pytest.raises(Refused, match="axis 0 of image is 'height'; only batch, masks, points, prompts may be dynamic"):
        check_onnx(floating(batch="height"), "encoder.onnx")


def test_what_is_no_onnx_is_refused():
    model = floating()
    model.graph.node[0].input[0] = "nothing"
    with pytest.raises(Refused, match="encoder.onnx is no valid ONNX model") as caught:
        check_onnx(model, "encoder.onnx")
    assert (caught.value.rule, caught.value.value, caught.value.limit) == ("export.rules", None, None)
    assert "\n" not in caught.value.reason


def test_the_file_of_fewer_bits_computes_what_its_width_allows():
    for bits in (8, 6, 4):
        model = lowered(bits)
        for constant in model.graph.initializer:
            if constant.data_type == TensorProto.INT8:
                assert np.abs(numpy_helper.to_array(constant).astype(int)).max() <= 2 ** (bits - 1) - 1
        model.graph.output.append(helper.make_tensor_value_info("image_dequantized", TensorProto.FLOAT, None))
        session = InferenceSession(model.SerializeToString())
        image = np.linspace(-3, 3, 48, dtype=np.float32).reshape(1, 3, 4, 4)
        found = session.run(["image_dequantized"], {"image": image})[0]
        steps = np.rint(image / np.float32(0.01)).clip(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        np.testing.assert_allclose(found, steps * 0.01, atol=1e-6)
