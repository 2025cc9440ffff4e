"""Locate the first tensor of a graph that exceeds the range of its type."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx

from pipeline.core.errors import InputError

FP16_LARGEST = 65504.0
_TENSORS_PER_RUN = 48
"""Tensors inspected per run: all tensors of a large encoder would not fit in memory."""


def first_out_of_range(path: Path, feeds: Mapping[str, np.ndarray], largest: float = FP16_LARGEST) -> str | None:
    """Describe the first tensor, in execution order, that is not finite or too large.

    Args:
        path: An ONNX file; ONNX Runtime runs it without graph optimizations.
        feeds: Inputs by name.
        largest: Largest magnitude in range.

    Returns:
        "tensor T of node N (type) reaches 1.2e+05", or None if all are in range.

    Raises:
        InputError: ONNX Runtime is missing.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise InputError(f"onnxruntime cannot be imported ({error}): `pip install onnxruntime`.") from None
    model = onnx.load(path)
    producers = {name: node for node in model.graph.node for name in node.output if name}
    own = [output.name for output in model.graph.output]
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    names = list(producers)
    for start in range(0, len(names), _TENSORS_PER_RUN):
        part = names[start : start + _TENSORS_PER_RUN]
        del model.graph.output[len(own) :]
        model.graph.output.extend(onnx.helper.make_empty_tensor_value_info(name) for name in part if name not in own)
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])
        inputs = {value.name for value in session.get_inputs()}
        results = session.run(part, {name: value for name, value in feeds.items() if name in inputs})
        for name, value in zip(part, results, strict=True):
            if not isinstance(value, np.ndarray) or value.dtype.kind != "f" or not value.size:
                continue
            magnitude = float(np.abs(value.astype(np.float32)).max())
            # The fp16 limit does not apply to tensors that an fp16 file keeps in fp32 on purpose.
            if not magnitude <= (largest if value.dtype == np.float16 else np.finfo(np.float32).max):  # NaN too
                node = producers[name]
                return f"tensor {name} of node {node.name or '?'} ({node.op_type}) reaches {magnitude:.3g}"
    return None
