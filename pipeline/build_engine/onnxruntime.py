"""ONNX Runtime runs the ONNX files unchanged."""

import shutil
from pathlib import Path

from pipeline.build_engine.config import BuildEngineConfig
from pipeline.core.errors import InputError


def onnxruntime(config: BuildEngineConfig, source: Path, out: Path) -> None:
    """Copy both files.

    Raises:
        InputError: The config asks for arithmetic that ONNX Runtime's CPU provider does not offer.
    """
    if config.inference_precision != "f32":
        raise InputError(
            f"build_engine.inference_precision is {config.inference_precision!r}, but ONNX Runtime computes in "
            "'f32' on CPUs: set that, or engine 'openvino'."
        )
    for name in ("encoder.onnx", "decoder.onnx"):
        shutil.copyfile(source / name, out / name)
