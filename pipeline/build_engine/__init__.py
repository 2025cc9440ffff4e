"""The verb ``build_engine``: a student's ONNX files made ready for one inference engine, and checked there."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from pipeline.artifact import Card, Contents, write_metrics
from pipeline.build_engine.check import check
from pipeline.build_engine.config import BuildEngineConfig
from pipeline.build_engine.onnxruntime import onnxruntime
from pipeline.build_engine.openvino import openvino
from pipeline.build_engine.tensorrt import tensorrt
from pipeline.data.shards import Shards
from pipeline.errors import InputError
from pipeline.log import Log
from pipeline.runtime import ENGINES as RUNTIMES
from pipeline.runtime import load
from pipeline.runtime.loading import DEVICES

SPLIT = "calibration"

__all__ = ["ENGINES", "BuildEngineConfig", "build_engine"]

ENGINES: Mapping[str, Callable[[BuildEngineConfig, Path, Path], None]] = {
    "openvino": openvino,
    "onnxruntime": onnxruntime,
    "tensorrt": tensorrt,
}
"""Engine to function: it gets the config, the directory of ONNX files, and the directory to write to. The same name
is a key of `pipeline.runtime.ENGINES`, which runs what is written here."""


def build_engine(
    config: BuildEngineConfig,
    *,
    prepare: Path,
    align: Path,
    quantize: Path,
    student: str,
    precision: str,
    out: Path,
    log: Log,
) -> Contents:
    """Build one engine, and compare it with the student in PyTorch.

    Args:
        config: See `BuildEngineConfig`.
        prepare: A dataset; its calibration split alone is read.
        align: The student's checkpoint.
        quantize: The ONNX artifact made of it.
        student: Its model's name.
        precision: Its encoder's precision.
        out: Gets the engine's files and ``metrics.json``.
        log: Told the figures, seconds of building among them; those are not written down.

    Raises:
        InputError: The engine is unknown, or the artifact is another model's.
        Refused: The engine does not give what the student does.
    """
    if config.engine not in ENGINES:
        raise InputError(f"unknown build_engine.engine {config.engine!r}: there is {', '.join(ENGINES)}.")
    source = Card.read(quantize)
    if (source.kind, source.model, source.precision) != ("onnx", student, precision):
        raise InputError(
            f"{quantize} holds {source.kind} {source.model} {source.precision}, not onnx {student} {precision}: "
            "run `dvc repro`."
        )
    began = time.perf_counter()
    ENGINES[config.engine](config, quantize, out)
    log({"build_seconds": time.perf_counter() - began})
    settings: dict[str, str | int | float | bool] = {
        "engine": config.engine,
        "inference_precision": config.inference_precision,
    }
    load_as = dict(source.load) | settings
    contents = Contents(kind="engine", model=student, options=source.options, precision=precision, load=load_as)
    # The frame seals the card after this returns; the check needs what it will say.
    card = Card(**contents.model_dump(), digest="", parents={})
    engine = RUNTIMES[config.engine](out, card, DEVICES.get(config.engine, "cpu"), config.threads)
    images = Shards(prepare, SPLIT)
    samples = (images[i] for i in range(min(config.images, len(images))))
    with torch.inference_mode():
        figures = check(config, engine, load(align, threads=config.threads), samples, quantize)
    payload = sum(path.stat().st_size for path in out.iterdir())
    figures["size_mib"] = payload / 2**20
    log(figures)
    write_metrics(out, figures)
    return contents
