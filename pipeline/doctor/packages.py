"""Libraries, each imported in a process of its own: one that is broken may crash, hang, or print to the terminal."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from pipeline.core.errors import InputError
from pipeline.doctor.check import Check, Run, output_of

TIMEOUT_S = 90.0
"""The first import of torch from a slow disk takes most of a minute."""
_MARK = "sam-distillery-probe:"

_TORCH = """
import torch
found = {"version": torch.__version__, "cuda": torch.version.cuda, "available": torch.cuda.is_available()}
found["cudnn"] = torch.backends.cudnn.version()
if found["available"]:
    found["architectures"] = torch.cuda.get_arch_list()
    found["devices"] = [
        {"name": torch.cuda.get_device_name(i), "capability": list(torch.cuda.get_device_capability(i))}
        for i in range(torch.cuda.device_count())
    ]
    a = torch.ones(64, 64, device="cuda", dtype=torch.bfloat16)
    found["product"] = bool((a @ a == 64).all())
else:
    try:
        torch.cuda.init()
    except Exception as error:
        found["reason"] = str(error).splitlines()[0]
"""
_FLASH_ATTN = """
import flash_attn
from flash_attn import flash_attn_func
found = {"version": flash_attn.__version__}
import torch
if torch.cuda.is_available():
    q = torch.ones(1, 64, 2, 64, device="cuda", dtype=torch.bfloat16)
    found["runs"] = bool(torch.isfinite(flash_attn_func(q, q, q)).all())
"""
_ONNXRUNTIME = """
import onnxruntime
found = {"version": onnxruntime.__version__, "providers": onnxruntime.get_available_providers()}
"""
_OPENVINO = """
import openvino
found = {"version": openvino.__version__, "devices": openvino.Core().available_devices}
"""
_TENSORRT = """
import tensorrt
found = {"version": tensorrt.__version__}
import torch
if torch.cuda.is_available():
    found["builder"] = tensorrt.Builder(tensorrt.Logger(tensorrt.Logger.ERROR)) is not None
"""
SETUP = "run `make setup`"
SETUP_GPU = "run `make setup-gpu`"


def checks(has_gpu: bool) -> dict[str, tuple[Run, float]]:
    """The checks of all libraries, with their deadlines.

    Args:
        has_gpu: Whether a driver reports a GPU, on which TensorRT and flash-attn are expected.
    """
    imported: dict[str, Callable[[], Sequence[Check]]] = {
        "torch": partial(_torch, has_gpu),
        "onnxruntime": partial(_required, "onnxruntime", _ONNXRUNTIME),
        "openvino": partial(_required, "openvino", _OPENVINO),
        "tensorrt": partial(_optional, "tensorrt", _TENSORRT, has_gpu, "needed to build and run TensorRT engines"),
        "flash-attn": partial(_optional, "flash-attn", _FLASH_ATTN, has_gpu, "dilated attention uses PyTorch's kernel"),
    }
    listed: dict[str, Callable[[], Sequence[Check]]] = {
        name: partial(_listed, name) for name in ("prefect", "dvc", "mlflow")
    }
    return {name: (run, TIMEOUT_S + 5) for name, run in {**imported, **listed}.items()}


def probe(code: str) -> Mapping[str, Any]:
    """Run code that sets ``found`` in a new process.

    Raises:
        InputError: It failed; the message is its last line.
    """
    script = f"{code}\nimport json, sys\nsys.stdout.write({_MARK!r} + json.dumps(found) + chr(10))"
    status, output, error = output_of([sys.executable, "-W", "ignore", "-c", script], TIMEOUT_S)
    line = next((line for line in output.splitlines() if line.startswith(_MARK)), None)
    if line is not None:
        found: Mapping[str, Any] = json.loads(line.removeprefix(_MARK))
        return found
    last = next((line.strip() for line in reversed(error.splitlines()) if line.strip()), "")
    raise InputError(last[:300] or f"the process ended with status {status}")


def _required(name: str, code: str) -> Sequence[Check]:
    if not (installed := _version(name)):
        return [Check(name, "fault", "not installed", SETUP)]
    try:
        found = probe(code)
    except InputError as error:
        return [
            Check(
                name, "fault", f"{installed} cannot be imported ({error})", f"{SETUP}; if it stays, remove .venv first"
            )
        ]
    more = [f"{key} {', '.join(map(str, value))}" for key, value in found.items() if isinstance(value, list)]
    return [Check(name, "ok", "; ".join([str(found["version"]), *more]), values=found)]


def _optional(name: str, code: str, has_gpu: bool, use: str) -> Sequence[Check]:
    if not (installed := _version(name)):
        if not has_gpu:
            return [Check(name, "ok", "not installed; only used on a GPU", values={"version": None})]
        return [Check(name, "warning", f"not installed: {use}", SETUP_GPU, {"version": None})]
    try:
        found = probe(code)
    except InputError as error:
        values = {"version": installed, "error": str(error)}
        return [Check(name, "warning", f"{installed} is a broken build ({error})", _remedy(name), values)]
    if found.get("runs") is False or found.get("builder") is False:
        return [Check(name, "warning", f"{found['version']} is imported, but does not run", _remedy(name), found)]
    tried = " and run on the GPU" if "runs" in found or "builder" in found else ""
    return [Check(name, "ok", f"{found['version']}, imported{tried}", values=found)]


def _remedy(name: str) -> str:
    return f"`uv pip uninstall {name}`, or build it against this torch: docs/gpu.md"


def _torch(has_gpu: bool) -> Sequence[Check]:
    checks = _required("torch", _TORCH)
    if (check := checks[0]).status != "ok" or not has_gpu:
        return checks
    found = check.values
    if not found["available"]:
        reason = found.get("reason") or "no reason given"
        remedy = "install a driver for CUDA 13 (580 or later), or unset CUDA_VISIBLE_DEVICES"
        return [Check("torch", "fault", f"{found['version']} cannot use the GPU ({reason})", remedy, found)]
    built = {name.rpartition("_")[2].rstrip("af") for name in found.get("architectures", ())}
    for device in found["devices"]:
        major, minor = device["capability"]
        if not any(name.isdecimal() and int(name) // 10 == major and int(name) % 10 <= minor for name in built):
            text = f"{found['version']} has no kernels for {device['name']} ({major}.{minor})"
            return [Check("torch", "fault", text, "install a torch that is built for it", found)]
    text = (
        f"{found['version']}, CUDA {found['cuda']}, cuDNN {found['cudnn']}, {len(found['devices'])} GPU(s), bf16 tried"
    )
    return [Check("torch", "ok" if found["product"] else "fault", text, values=found)]


def _listed(name: str) -> Sequence[Check]:
    installed = _version(name)
    if installed:
        return [Check(name, "ok", installed, values={"version": installed})]
    return [Check(name, "warning", "not installed", "`make setup`, or `pip install 'sam-distillery[flows]'`")]


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
