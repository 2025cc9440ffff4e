"""Stage ``build_engine``: build and check an inference engine from a student's ONNX files."""

import time
from collections.abc import Callable, Mapping
from itertools import islice
from pathlib import Path

import torch

from pipeline.build_engine.check import boxes, check
from pipeline.build_engine.config import BuildEngineConfig
from pipeline.build_engine.onnxruntime import onnxruntime
from pipeline.build_engine.openvino import openvino
from pipeline.build_engine.tensorrt import tensorrt
from pipeline.core.artifact import Card, Contents, write_metrics
from pipeline.core.errors import InputError
from pipeline.core.log import Log
from pipeline.core.progress import notice
from pipeline.data.shards import Shards
from pipeline.ops.cpu import EXACT_FACTOR, WEIGHT_RANGE, check_exact
from pipeline.runtime import ENGINES as RUNTIMES
from pipeline.runtime import Segmenter, load, self_check
from pipeline.runtime.loading import DEVICES

SPLIT = "calibration"
COSINE_SLACK, MASK_SLACK = 0.005, 0.05
"""Tolerance of the self-check on another machine, below the values reached where the engine was built."""
SELF_CHECK_IMAGES = 2
"""Number of photographs in an engine's self-check; see `pipeline.runtime.self_check`."""

__all__ = ["ENGINES", "BuildEngineConfig", "build_engine"]

ENGINES: Mapping[str, Callable[[BuildEngineConfig, Path, Path], None]] = {
    "openvino": openvino,
    "onnxruntime": onnxruntime,
    "tensorrt": tensorrt,
}
"""Build function of each engine; arguments: config, directory of the ONNX files, output directory. The names are keys
of `pipeline.runtime.ENGINES`, which runs the built engines."""


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
    """Build one engine and compare it with the student in PyTorch.

    Args:
        config: See `BuildEngineConfig`.
        prepare: The dataset; only its calibration split is read.
        align: The student's checkpoint.
        quantize: The ONNX artifact exported from it.
        student: Name of the student.
        precision: Precision of the encoder.
        out: Output directory for the engine's files, ``self_check.safetensors`` and ``metrics.json``.
        log: Receives the metrics and the build time in seconds, which is not part of ``metrics.json``.

    Raises:
        InputError: The engine is unknown, or the artifact is damaged or of another model.
        Refused: The engine's outputs differ too much from the student's.
    """
    if config.engine not in ENGINES:
        raise InputError(f"unknown build_engine.engine {config.engine!r}: there is {', '.join(ENGINES)}.")
    source = Card.verified(quantize)
    if (source.kind, source.model, source.precision) != ("onnx", student, precision):
        raise InputError(
            f"{quantize} holds {source.kind} {source.model} {source.precision}, not onnx {student} {precision}: "
            "run `dvc repro`."
        )
    if (
        config.engine == "tensorrt"
        and 0 < int(source.load.get(WEIGHT_RANGE, 0)) <= EXACT_FACTOR
        and "int8" in precision
    ):
        notice("TensorRT computes int8 exactly over its full range: quantize.reduce_range: false keeps more precision.")
    if config.engine not in DEVICES:
        check_exact(quantize, source)
    start = time.perf_counter()
    ENGINES[config.engine](config, quantize, out)
    log({"build_seconds": time.perf_counter() - start})
    settings: dict[str, str | int | float | bool] = {
        "engine": config.engine,
        "inference_precision": config.inference_precision,
    }
    load_as = dict(source.load) | settings
    contents = Contents(kind="engine", model=student, options=source.options, precision=precision, load=load_as)
    # The stage writes the card after this function returns; the check needs one with the same contents.
    card = Card(**contents.model_dump(), digest="", parents={})
    engine = RUNTIMES[config.engine](out, card, DEVICES.get(config.engine, "cpu"), config.threads)
    images = Shards(prepare, SPLIT)
    samples = (images[i] for i in range(min(config.images, len(images))))
    payload = sum(path.stat().st_size for path in out.iterdir())
    reference = load(align, threads=config.threads)
    with torch.inference_mode():
        figures = check(config, engine, reference, samples, quantize)
        figures |= _self_check(config, engine, reference, images, out)
    figures["size_mib"] = payload / 2**20
    log(figures)
    write_metrics(out, figures)
    return contents


def _self_check(
    config: BuildEngineConfig, engine: Segmenter, reference: Segmenter, images: Shards, out: Path
) -> dict[str, float]:
    """Write the engine's self-check from the first photographs with instances, and run it on this machine.

    A few small photographs are a noisier measure than the gate: an engine that passed the gate may miss its limits
    here. The limits are then set from the values it reached.
    """
    pairs = ((sample.image, boxes(sample, reference.image_size)) for sample in (images[i] for i in range(len(images))))
    some = islice((pair for pair in pairs if len(pair[1])), SELF_CHECK_IMAGES)
    cases = [self_check.make_case(reference, image, corners) for image, corners in some]
    limits = (config.min_cosine, config.min_mask_agreement)
    self_check.save(cases, out, min_cosine=limits[0], min_mask_iou=limits[1])
    agreement = self_check.repeat(engine, out)
    if not agreement.passes:
        reached = (agreement.embedding_cosine - COSINE_SLACK, agreement.mask_iou - MASK_SLACK)
        limits = (min(limits[0], reached[0]), min(limits[1], reached[1]))
        self_check.save(cases, out, min_cosine=limits[0], min_mask_iou=limits[1])
    return {"self_check_cosine": agreement.embedding_cosine, "self_check_mask_iou": agreement.mask_iou}
