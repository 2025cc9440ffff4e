"""NVIDIA ModelOpt: ranges of activations, and AutoCast to fp16. Runs on the CPU."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from re import escape
from typing import Any

import numpy as np
import onnx
from onnx import ModelProto

from pipeline.core.errors import InputError
from pipeline.quantize.calibration import Feeds, Reader, quiet
from pipeline.quantize.config import QuantizeConfig
from pipeline.quantize.layers import Layer
from pipeline.quantize.qdq import read_scales


def _import(module: str, name: str) -> Callable[..., Any]:
    from importlib import import_module

    try:
        function: Callable[..., Any] = getattr(import_module(module), name)
    except ImportError as error:
        raise InputError(
            f"nvidia-modelopt cannot be imported ({error}): `make setup` installs it; or set "
            "quantize.method to onnxruntime or search and leave out the precisions fp16 and int8_fp16."
        ) from None
    return function


def modelopt(config: QuantizeConfig, source: Path, lowered: Sequence[Layer], reader: Reader) -> dict[str, float]:
    """Find the scales of activations, by tensor. See `pipeline.quantize.scales.onnxruntime.onnxruntime`.

    Raises:
        InputError: The package is missing, or does not offer the calibration.
    """
    if config.calibration == "percentile":
        raise InputError(
            "quantize.method modelopt calibrates by max or entropy, not by percentile: set one of these, or method "
            "onnxruntime."
        )
    quantize, out = _import("modelopt.onnx.quantization", "quantize"), source.with_name("modelopt.onnx")
    with quiet(), _unpatched():
        quantize(
            str(source),
            quantize_mode="int8",
            calibration_method=config.calibration,
            calibration_data_reader=reader,
            calibration_eps=["cpu"],
            op_types_to_quantize=sorted({layer.op for layer in lowered}),
            nodes_to_quantize=[f"^{escape(layer.node)}$" for layer in lowered],
            high_precision_dtype="fp32",
            output_path=str(out),
            log_level="CRITICAL",
        )
    return read_scales(onnx.load(out))


@contextmanager
def _unpatched() -> Iterator[None]:
    """Restore the methods of ONNX Runtime's quantizer, which ModelOpt 0.47 replaces for the whole process."""
    from onnxruntime.quantization import base_quantizer, calibrate, qdq_quantizer

    owners = [calibrate, base_quantizer.BaseQuantizer, qdq_quantizer.QDQQuantizer]
    owners += [value for value in vars(calibrate).values() if isinstance(value, type)]
    before = [(owner, dict(vars(owner))) for owner in owners]
    try:
        yield
    finally:
        for owner, attributes in before:
            for name, value in attributes.items():
                if vars(owner).get(name) is not value:
                    setattr(owner, name, value)


DATA_MAX = 2.0**14
"""Largest input or output of a node in fp16 on the example image: a quarter of fp16's range, a margin for other images.
AutoCast's default of 512 leaves most layers of a student in fp32."""


def autocast(source: Path, feeds: Feeds, *, keep_nodes: Sequence[str], keep_kinds: Sequence[str]) -> ModelProto:
    """Convert a model to fp16, except named nodes, kinds of nodes, and nodes that exceed fp16's range on ``feeds``.

    Inputs and outputs stay fp32.

    Raises:
        InputError: The package is missing.
    """
    convert, data = _import("modelopt.onnx.autocast", "convert_to_mixed_precision"), source.with_name("feeds.npz")
    np.savez(data, **feeds)
    with quiet():
        model: ModelProto = convert(
            str(source),
            low_precision_type="fp16",
            nodes_to_exclude=[f"^{escape(name)}$" for name in keep_nodes],
            op_types_to_exclude=list(keep_kinds),
            data_max=DATA_MAX,
            calibration_data=str(data),
            keep_io_types=True,
        )
    return model
