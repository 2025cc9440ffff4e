"""Peak throughput of the processors: multiply-accumulates per second of a large matrix product.

A network's share of it shows how close it comes to such a product; the rest goes into memory access, norms,
activations, small layers and conversions between precisions.
"""

from functools import cache
from io import BytesIO

import numpy as np
import onnx
import openvino
from onnx import TensorProto, helper, numpy_helper

from pipeline.evaluate.timing import measure

_SIDE = 2048
_SCALE = 0.02
_RUNS = 12


@cache
def peak_macs_per_s(precision: str, threads: int) -> float:
    """Measure multiply-accumulates per second of a product of 2048 x 2048 matrices on OpenVINO, median of 12.

    Args:
        precision: ``fp32``, ``bf16`` or ``int8``.
        threads: CPU threads.
    """
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "INFERENCE_NUM_THREADS": threads,
        "NUM_STREAMS": 1,
    }
    core = openvino.Core()
    model = core.read_model(BytesIO(_product(int8=precision == "int8").SerializeToString()))
    request = core.compile_model(model, "CPU", settings).create_infer_request()
    request.set_input_tensor(openvino.Tensor(np.random.default_rng(0).normal(size=(_SIDE, _SIDE)).astype(np.float32)))
    timing = measure(request.infer, warmup=3, runs=_RUNS, max_foreign_load=1.0)
    return float(_SIDE**3 / (timing.median_ms / 1e3))


def _product(*, int8: bool) -> onnx.ModelProto:
    """Build a model of ``x @ w``, both optionally rounded to int8."""
    weight = np.random.default_rng(1).integers(-127, 128, (_SIDE, _SIDE)).astype(np.int8)
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, [_SIDE, _SIDE]) for name in "xy")
    if not int8:
        constants = [numpy_helper.from_array(weight.astype(np.float32) * np.float32(_SCALE), "w")]
        graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "graph", [x], [y], constants)
    else:
        constants = [
            numpy_helper.from_array(weight, "w"),
            numpy_helper.from_array(np.full(_SIDE, _SCALE, np.float32), "w.scale"),
            numpy_helper.from_array(np.zeros(_SIDE, np.int8), "w.zero"),
            numpy_helper.from_array(np.array(_SCALE, np.float32), "x.scale"),
            numpy_helper.from_array(np.array(0, np.int8), "x.zero"),
        ]
        nodes = [
            helper.make_node("QuantizeLinear", ["x", "x.scale", "x.zero"], ["x.q"]),
            helper.make_node("DequantizeLinear", ["x.q", "x.scale", "x.zero"], ["x.dq"]),
            helper.make_node("DequantizeLinear", ["w", "w.scale", "w.zero"], ["w.dq"], axis=1),
            helper.make_node("MatMul", ["x.dq", "w.dq"], ["y"]),
        ]
        graph = helper.make_graph(nodes, "graph", [x], [y], constants)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
