"""TensorRT engines, built on the target GPU; strongly typed, so that layers compute in the ONNX file's types.

Supports TensorRT 10.16 and 11. 11 is always strongly typed and has no precision flags; 10 needs the strong typing
flag. fp16 comes from a file converted by AutoCast, int8 from QDQ nodes (`pipeline.quantize`).
"""

import hashlib
import json
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from pipeline.build_engine.config import BuildEngineConfig, TensorRtConfig
from pipeline.core import atomic
from pipeline.core.artifact import write_json
from pipeline.core.errors import InputError
from pipeline.runtime.tensorrt import SIDECAR, bindings, machine

_DEVICE = torch.device("cuda")


def tensorrt(config: BuildEngineConfig, source: Path, out: Path) -> None:
    """Build both engines and write a JSON sidecar with GPU, versions and settings.

    Raises:
        InputError: The section or the package is missing, there is no GPU, or TensorRT refuses a file.
    """
    if config.tensorrt is None:
        raise InputError("build_engine.engine is 'tensorrt', but build_engine.tensorrt is null: fill it in.")
    if config.inference_precision != "f32":
        raise InputError(
            "TensorRT engines are strongly typed: set build_engine.inference_precision to 'f32' and choose the "
            "precision by `precisions` (fp16, int8_fp16 ...)."
        )
    trt = bindings()
    here = machine(trt, _DEVICE)
    about: dict[str, Any] = here | {"hardware_compatibility": config.tensorrt.hardware_compatibility}
    about["profile"] = config.tensorrt.profile.model_dump()
    for name in ("encoder", "decoder"):
        path = source / f"{name}.onnx"
        plan, layers = build(trt, path, config.tensorrt, here)
        (out / f"{name}.engine").write_bytes(plan)
        about[name] = {"onnx_sha256": hashlib.sha256(path.read_bytes()).hexdigest(), "layers": layers}
    write_json(out / SIDECAR, about)


def build(trt: Any, path: Path, config: TensorRtConfig, here: dict[str, str]) -> tuple[bytes, dict[str, float]]:
    """Build one engine.

    Args:
        trt: The package.
        path: The ONNX file.
        config: Profile, hardware compatibility and timing cache.
        here: GPU and versions from `pipeline.runtime.tensorrt.machine`.

    Returns:
        The serialized engine, and the share of its layers per output precision.

    Raises:
        InputError: TensorRT cannot parse or build the file; the message includes the parser's errors.
    """
    logger = trt.Logger(trt.Logger.WARNING)
    builder = trt.Builder(logger)
    strong = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED) if trt.__version__.startswith("10.") else 0
    network = builder.create_network(strong)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(path)):
        raise InputError(f"TensorRT {trt.__version__} cannot read {path}:\n{_errors(parser)}")
    settings = builder.create_builder_config()
    settings.builder_optimization_level = config.optimization_level
    settings.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the inspector needs it to report precisions
    settings.hardware_compatibility_level = getattr(
        trt.HardwareCompatibilityLevel, config.hardware_compatibility.upper()
    )
    if config.workspace_mib is not None:
        settings.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, config.workspace_mib << 20)
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        profile.set_shape(tensor.name, *shapes(tensor.name, tuple(tensor.shape), config))
    settings.add_optimization_profile(profile)
    cache = _timings(config, here)
    timings = settings.create_timing_cache(cache.read_bytes() if cache and cache.is_file() else b"")
    settings.set_timing_cache(timings, ignore_mismatch=False)
    plan = builder.build_serialized_network(network, settings)
    if plan is None:
        raise InputError(f"TensorRT {trt.__version__} cannot build {path}; its messages above say why.")
    data = bytes(plan)
    if cache:
        cache.parent.mkdir(parents=True, exist_ok=True)
        with atomic.replacing(cache) as draft:
            draft.write_bytes(bytes(timings.serialize()))
    return data, _precisions(trt, logger, data)


def shapes(name: str, shape: tuple[int, ...], config: TensorRtConfig) -> list[tuple[int, ...]]:
    """Minimum, optimum and maximum shape of one input; -1 in ``shape`` marks dynamic axes.

    Raises:
        InputError: The profile does not cover the input's dynamic axes.
    """
    varying = {"image": ("batch",), "point_coords": ("prompts", "points"), "point_labels": ("prompts", "points")}
    varying["mask_input"] = ("masks",)
    free = [i for i, extent in enumerate(shape) if extent == -1]
    axes = varying.get(name, ())
    if len(free) != len(axes):
        raise InputError(f"input {name} of shape {shape} has {len(free)} free axes; the profile knows {len(axes)}.")
    results = []
    for bound in range(3):
        extents = list(shape)
        for axis, key in zip(free, axes, strict=True):
            extents[axis] = getattr(config.profile, key)[bound]
        results.append(tuple(extents))
    return results


def _errors(parser: Any) -> str:
    """All errors of the parser, each with its node."""
    errors = [parser.get_error(i) for i in range(parser.num_errors)]
    return "\n".join(f"  {e.node_name() or '?'} ({e.node_operator() or '?'}): {e.desc()}" for e in errors)


def _timings(config: TensorRtConfig, here: dict[str, str]) -> Path | None:
    """Path of the timing cache, which is valid for one GPU and one TensorRT version only."""
    if config.timing_cache is None:
        return None
    key = "-".join(here[k].replace(" ", "_") for k in ("gpu", "compute_capability", "tensorrt"))
    return Path(config.timing_cache) / f"{key}.cache"


def _precisions(trt: Any, logger: Any, plan: bytes) -> dict[str, float]:
    """Share of layers by the data type of their first output, from the engine inspector."""
    engine = trt.Runtime(logger).deserialize_cuda_engine(plan)
    information = engine.create_engine_inspector().get_engine_information(trt.LayerInformationFormat.JSON)
    layers = [layer for layer in json.loads(information)["Layers"] if isinstance(layer, dict)]
    counted = Counter(_kind(layer) for layer in layers)
    return {kind: count / len(layers) for kind, count in sorted(counted.items())}


def _kind(layer: dict[str, Any]) -> str:
    outputs = layer.get("Outputs") or [{}]
    words = str(outputs[0].get("Format/Datatype") or outputs[0].get("Datatype") or "unknown").lower().split()
    names = {"fp32": "fp32", "float": "fp32", "fp16": "fp16", "half": "fp16", "int8": "int8", "bf16": "bf16"}
    return next((names[word] for word in words if word in names), "other")
