"""Where in a graph a number first leaves the range of its type."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx

from pipeline.core.errors import InputError

FP16_LARGEST = 65504.0
_AT_ONCE = 48
"""Tensors looked at in one run: all of a large encoder's at once would not fit in memory."""


def first_out_of_range(path: Path, feeds: Mapping[str, np.ndarray], largest: float = FP16_LARGEST) -> str | None:
    """The first tensor, in the order of computation, that is not finite or too large, told as a person would.

    Args:
        path: An ONNX file; ONNX Runtime computes it as it is, without fusing anything.
        feeds: Inputs by name.
        largest: Greatest magnitude that is in range.

    Returns:
        "tensor T of node N (type) reaches 1.2e+05", or None where all stay in range.

    Raises:
        InputError: ONNX Runtime is missing.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(f"onnxruntime cannot be imported ({error}): `pip install onnxruntime`.") from None
    model = onnx.load(path)
    makers = {name: node for node in model.graph.node for name in node.output if name}
    own = [output.name for output in model.graph.output]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    names = list(makers)
    for start in range(0, len(names), _AT_ONCE):
        part = names[start : start + _AT_ONCE]
        del model.graph.output[len(own) :]
        model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in part if name not in own)
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        known = {each.name for each in session.get_inputs()}
        results = session.run(part, {name: value for name, value in feeds.items() if name in known})
        for name, value in zip(part, results, strict=True):
            if not isinstance(value, np.ndarray) or value.dtype.kind != "f" or not value.size:
                continue
            reached = float(np.abs(value.astype(np.float32)).max())
            # A tensor in fp32 may be as large as it likes; what an fp16 file keeps in fp32 is meant to be.
            if not reached <= (largest if value.dtype == np.float16 else np.finfo(np.float32).max):  # NaN too
                node = makers[name]
                return f"tensor {name} of node {node.name or '?'} ({node.op_type}) reaches {reached:.3g}"
    return None
