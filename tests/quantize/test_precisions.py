"""Every precision of the table on a small encoder: its form, what stays in floating point, and the tools' choices."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from pipeline.core.errors import InputError
from pipeline.export.sam import export_decoder
from pipeline.export.saturation import weight_range
from pipeline.quantize import PRECISIONS
from pipeline.quantize.calibration import CalibrationData
from pipeline.quantize.casts import remove_casts
from pipeline.quantize.config import SearchConfig
from pipeline.quantize.decoder import DecoderData, _form, decoder_layers, lower_decoder
from pipeline.quantize.fp16 import fp16_layers, narrowed
from pipeline.quantize.graph import Graph
from pipeline.quantize.layers import layers, linear_attention
from pipeline.quantize.qdq import read_scales
from pipeline.runtime.onnxruntime import open_session
from tests.quantize.test_quantize import CONFIG, Pictures, encoder, lowered, small  # noqa: F401 - fixtures

COSINES = {"fp32": 1.0, "fp16": 0.9999, "int8": 0.995, "int8_fp16": 0.995, "w6a6": 0.9, "w4a8": 0.9}


def types(path):
    return {constant.data_type for constant in onnx.load(path).graph.initializer}


def test_every_precision_is_expected_here():
    assert set(COSINES) == set(PRECISIONS)


@pytest.mark.parametrize("precision", [name for name in PRECISIONS if name != "fp32"])
def test_a_precision_agrees_with_fp32_as_far_as_it_can(small, encoder, tmp_path, precision):  # noqa: F811
    path, figures = lowered(small, encoder, tmp_path, precision)
    assert figures["embedding_cosine"] > COSINES[precision]
    session = open_session(path)
    assert {value.type for value in (*session.get_inputs(), *session.get_outputs())} == {"tensor(float)"}


def test_fp16_keeps_norms_in_fp32_and_all_large_weights_in_fp16(small, encoder, tmp_path):  # noqa: F811
    path, _ = lowered(small, encoder, tmp_path, "fp16")
    model = onnx.load(path)
    constants = {constant.name: constant for constant in model.graph.initializer}
    for node in model.graph.node:
        kinds = {constants[name].data_type for name in node.input if name in constants}
        if node.op_type == "LayerNormalization":
            assert kinds == {TensorProto.FLOAT}
        elif node.op_type in ("Conv", "Gemm"):
            assert kinds == {TensorProto.FLOAT16}
    assert path.stat().st_size < 0.6 * encoder.stat().st_size


def test_int8_fp16_has_neither_fp32_weights_nor_rounded_ones_in_floats(small, encoder, tmp_path):  # noqa: F811
    path, figures = lowered(small, encoder, tmp_path, "int8_fp16")
    large = [c for c in onnx.load(path).graph.initializer if np.prod(c.dims) >= 1024]
    assert large
    assert {c.data_type for c in large} == {TensorProto.INT8}
    assert figures["quantize_linear_nodes"] > 0
    assert figures["fp16_layers"] > 0.8


def test_layers_of_large_values_within_fp16s_range_compute_in_fp16(tmp_path):
    # AutoCast's own limit is 512.
    weight = np.eye(4, dtype=np.float32)[:, :, None, None]
    nodes = [
        helper.make_node("Conv", ["image", "weight"], ["x"], name="first"),
        helper.make_node("Mul", ["x", "scale"], ["y"], name="scale"),
        helper.make_node("Conv", ["y", "weight"], ["z"], name="second"),
    ]
    constants = {"weight": weight, "scale": np.float32(3000)}
    shape = ["batch", 4, 4, 4]
    inputs, outputs = ([helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)] for name in ("image", "z"))
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, initializers)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "x.onnx")
    model = narrowed(tmp_path / "x.onnx", {"image": np.ones((1, 4, 4, 4), np.float32)}, tmp_path)
    assert fp16_layers(model) == 1.0


@pytest.mark.parametrize("shared", [False, True])
def test_a_layer_in_fp32_reads_its_dequantizer_without_a_cast(shared):
    # What AutoCast makes where a layer stays in fp32; `shared`: another layer reads the same weight in fp16.
    nodes = [
        helper.make_node("DequantizeLinear", ["steps", "scale", "zero"], ["half"], name="dequantizer"),
        helper.make_node("Cast", ["half"], ["single"], name="cast", to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["image", "single"], ["z"], name="product"),
    ]
    if shared:
        nodes += [
            helper.make_node("Cast", ["image"], ["narrow"], name="input", to=TensorProto.FLOAT16),
            helper.make_node("MatMul", ["narrow", "half"], ["w"], name="narrow"),
        ]
    constants = {
        "steps": np.arange(-8, 8, dtype=np.int8).reshape(4, 4), "scale": np.float16(0.1), "zero": np.int8(0),
    }  # fmt: skip
    outputs = [helper.make_tensor_value_info("z", TensorProto.FLOAT, [1, 4])]
    outputs += [helper.make_tensor_value_info("w", TensorProto.FLOAT16, [1, 4])] if shared else []
    initializers = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    inputs = [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 4])]
    graph = helper.make_graph(nodes, "graph", inputs, outputs, initializers)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=10)
    expected = reference(model)
    assert remove_casts(model) == 1
    onnx.checker.check_model(model, full_check=True)
    made_by = {name: node.op_type for node in model.graph.node for name in node.output}
    products = [node for node in model.graph.node if node.op_type == "MatMul"]
    assert [made_by[node.input[1]] for node in products] == ["DequantizeLinear"] * len(products)
    for found, value in zip(reference(model), expected, strict=True):
        np.testing.assert_allclose(found, value, rtol=1e-3)


def reference(model):
    return ReferenceEvaluator(model).run(None, {"image": np.array([[1.0, 2.0, -3.0, 0.5]], np.float32)})


@pytest.mark.parametrize(
    ("precision", "reduce_range", "most"),
    [("int8", True, 64), ("int8", False, 127), ("int8_fp16", True, 64), ("w6a6", True, 31), ("w4a8", True, 7)],
)
def test_weights_fill_the_range_of_their_width(small, encoder, tmp_path, precision, reduce_range, most):  # noqa: F811
    path, _ = lowered(small, encoder, tmp_path, precision, reduce_range=reduce_range)
    assert weight_range(onnx.load(path)) == most
    weights = [c for c in onnx.load(path).graph.initializer if c.data_type == TensorProto.INT8 and len(c.dims) > 1]
    assert {int(np.abs(numpy_helper.to_array(c).astype(int)).max()) for c in weights} == {most}


@pytest.mark.parametrize("calibration", ["max", "entropy"])
def test_modelopt_finds_the_scales_of_the_same_tensors(small, encoder, tmp_path, calibration):  # noqa: F811
    for method in ("onnxruntime", "modelopt"):
        (tmp_path / method).mkdir()
    files = [
        lowered(small, encoder, tmp_path / method, method=method, calibration=calibration)[0]
        for method in ("onnxruntime", "modelopt")
    ]
    ours, theirs = ([(n.op_type, list(n.input)) for n in onnx.load(path).graph.node] for path in files)
    assert ours == theirs
    if calibration == "max":
        scales = [
            {
                c.name: float(numpy_helper.to_array(c))
                for c in onnx.load(path).graph.initializer
                if c.name.endswith("_scale") and not c.dims
            }
            for path in files
        ]
        assert scales[0].keys() == scales[1].keys()
        for name, scale in scales[0].items():
            assert scales[1][name] == pytest.approx(scale, rel=0.02)


def test_modelopt_has_no_percentile(small, encoder, tmp_path):  # noqa: F811
    with pytest.raises(InputError, match="by max or entropy, not by percentile"):
        lowered(small, encoder, tmp_path, method="modelopt", calibration="percentile")


def test_an_absent_modelopt_says_what_to_install(small, encoder, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setitem(__import__("sys").modules, "modelopt.onnx.autocast", None)
    with pytest.raises(InputError, match="nvidia-modelopt cannot be imported .* `make setup` installs it"):
        lowered(small, encoder, tmp_path, "fp16")


def test_layers_to_keep_stay_in_floating_point(small, encoder, tmp_path):  # noqa: F811
    names = [layer.name for layer in layers(onnx.load(encoder))]
    assert {"stem.0", "block.0", "lower", "project", "widen"} <= set(names)
    path, figures = lowered(small, encoder, tmp_path, keep=["stem.*", "widen"])
    kept = {c.name for c in onnx.load(path).graph.initializer if c.data_type == TensorProto.FLOAT and len(c.dims) > 1}
    assert "image_encoder.stem.0.weight" in kept
    assert figures["quantized_nodes"] == 3


def test_a_pattern_that_fits_no_layer_is_refused(small, encoder, tmp_path):  # noqa: F811
    with pytest.raises(InputError, match=r"quantize.keep names 'nek.\*', which fits no layer"):
        lowered(small, encoder, tmp_path, keep=["nek.*"])


def test_the_sums_and_the_division_of_linear_attention_are_found():
    from torch import nn, randn
    from torch.onnx import export

    from pipeline.models.efficientvit import linear_attention as attend

    class Attention(nn.Module):
        def forward(self, x):
            return attend(x)

    program = export(Attention().eval(), (randn(1, 2, 96, 256),), dynamo=True, opset_version=18, verbose=False)
    model = program.model_proto
    for i, node in enumerate(model.graph.node):
        node.name = f"{node.op_type}_{i}"
    kinds = sorted(node.op_type for node in linear_attention(model))
    assert kinds == ["Clip", "Div", "MatMul", "MatMul", "Slice", "Slice"]


@pytest.fixture(scope="module")
def decoder(small, tmp_path_factory):  # noqa: F811
    path = tmp_path_factory.mktemp("decoder") / "decoder.onnx"
    export_decoder(small, path, opset=18, tolerance=1e-3)
    return path


def lowered_decoder(folder, source, encoder, small, precision="fp32", **changes):  # noqa: F811
    path = folder / "decoder.onnx"
    path.write_bytes(source.read_bytes())
    config = CONFIG.model_copy(update=changes)
    data = CalibrationData(config, small, Pictures())
    return path, lower_decoder(config, path, encoder, data, precision=precision)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
def test_the_decoders_price_is_told(small, encoder, decoder, tmp_path, precision):  # noqa: F811
    path, figures = lowered_decoder(tmp_path, decoder, encoder, small, decoder=precision)
    assert [p.name for p in tmp_path.iterdir()] == ["decoder.onnx"]
    if precision == "fp32":
        assert figures == {}
    else:
        assert figures["decoder_mask_agreement"] > 0.9
        assert figures["decoder_iou_difference"] < 0.05
        assert path.stat().st_size < 0.7 * decoder.stat().st_size


def test_the_search_finds_the_decoders_scales_and_loses_less(small, encoder, decoder, tmp_path):  # noqa: F811
    results = {}
    for method in ("onnxruntime", "search"):
        (tmp_path / method).mkdir()
        changes = {"decoder": "same", "method": method, "search": SearchConfig(candidates=40, rounds=2, rows=128)}
        results[method] = lowered_decoder(tmp_path / method, decoder, encoder, small, "w6a6", **changes)
    scales = {method: read_scales(onnx.load(path)) for method, (path, _) in results.items()}
    assert scales["search"].keys() == scales["onnxruntime"].keys()
    assert any(scales["search"][name] != scale for name, scale in scales["onnxruntime"].items())
    agreement = {method: figures["decoder_mask_agreement"] for method, (_, figures) in results.items()}
    assert agreement["search"] > agreement["onnxruntime"]


@pytest.mark.parametrize(
    ("precision", "form"), [("fp32", "fp32"), ("fp16", "fp16"), ("int8_fp16", "int8"), ("w6a6", "w6a6")]
)
def test_a_decoder_of_the_same_precision_follows_the_encoder(precision, form):
    assert _form(CONFIG.model_copy(update={"decoder": "same"}), precision) == form


def test_a_precision_that_no_decoder_has_is_refused():
    with pytest.raises(InputError, match="no decoder is bf16_weights: set it to fp32, fp16 or int8"):
        _form(CONFIG.model_copy(update={"decoder": "same"}), "bf16_weights")


def test_the_prompt_encoder_is_not_quantized(decoder):
    model = onnx.load(decoder)
    names = [layer.name for layer in decoder_layers(model)]
    assert len(names) > 30
    assert not any("prompt_encoder" in name for name in names)
    embedded = {c.name for c in model.graph.initializer if list(c.dims) == [5, 256]}  # of point labels
    assert embedded
    assert not embedded & {layer.weight for layer in decoder_layers(model)}


def test_the_decoders_graph_in_pytorch_is_the_file(small, encoder, decoder):  # noqa: F811
    feeds = DecoderData(open_session(encoder), CalibrationData(CONFIG, small, Pictures())).feeds(0)
    graph = Graph(onnx.load(decoder))
    values = graph({name: torch.from_numpy(value) for name, value in feeds.items()})
    for name, expected in zip(graph.outputs, open_session(decoder).run(None, feeds), strict=True):
        np.testing.assert_allclose(values[name].numpy(), expected, atol=1e-4)
