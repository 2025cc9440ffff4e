"""NVIDIA GPUs as their driver reports them, without torch."""

import os
import re
import shutil
from collections.abc import Sequence
from pathlib import Path

from pipeline.doctor.check import Check, output_of

TIMEOUT_S = 15.0
LEAST_DRIVER = 580
"""The first driver for CUDA 13, which the locked torch is built with."""
_FIELDS = ("index", "name", "driver_version", "memory.total", "memory.free", "compute_cap")


def gpus() -> Sequence[Check]:
    """One line for each GPU, and one for the driver."""
    if shutil.which("nvidia-smi") is None:
        if any(Path("/dev").glob("nvidia[0-9]*")):
            remedy = "install the driver's utilities; in Docker start with --gpus all"
            return [Check("gpu", "warning", "there is an NVIDIA device, but no nvidia-smi", remedy)]
        return [Check("gpu", "ok", "no NVIDIA GPU", values={"count": 0})]
    query = ["nvidia-smi", f"--query-gpu={','.join(_FIELDS)}", "--format=csv,noheader,nounits"]
    code, output, error = output_of(query, TIMEOUT_S)
    if code != 0:
        reason = " ".join((output + error).split())[:200]
        return [Check("gpu", "fault", f"nvidia-smi fails ({reason})", "reload or reinstall the driver, or restart")]
    rows = [[part.strip() for part in line.split(",")] for line in output.splitlines() if line.count(",") == 5]
    if not rows:
        return [Check("gpu", "ok", "no NVIDIA GPU, though there is a driver", values={"count": 0})]
    return [*map(_describe, rows), *_driver(rows[0][2]), *_visible()]


def _describe(row: Sequence[str]) -> Check:
    index, name, _, total, free, capability = row
    total_mib, free_mib = _whole(total), _whole(free)
    values = {
        "index": index,
        "name": name,
        "memory_mib": total_mib,
        "free_mib": free_mib,
        "compute_capability": capability,
    }
    text = f"{name}, {free} of {total} MiB free, compute capability {capability}"
    check = f"gpu {index}"
    if total_mib and free_mib is not None and free_mib < total_mib / 2:
        remedy = f"another process uses it (`nvidia-smi`): end it or set CUDA_VISIBLE_DEVICES without {index}"
        return Check(check, "warning", text, remedy, values)
    if capability[:1] in "34567" and not capability.startswith("7.5"):
        return Check(check, "fault", text, "the locked torch needs compute capability 7.5 or later", values)
    return Check(check, "ok", text, values=values)


def _driver(version: str) -> Sequence[Check]:
    _, banner, _ = output_of(["nvidia-smi"], TIMEOUT_S)
    match = re.search(r"CUDA(?: UMD)? Version:\s*([\d.]+)", banner)
    cuda = match[1] if match else None
    values = {"driver": version, "cuda": cuda}
    text = f"{version}, for CUDA up to {cuda or 'unknown'}"
    if (_whole(version.partition(".")[0]) or LEAST_DRIVER) < LEAST_DRIVER:
        return [Check("driver", "fault", text, f"install driver {LEAST_DRIVER} or later, for CUDA 13", values)]
    return [Check("driver", "ok", text, values=values)]


def _visible() -> Sequence[Check]:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is None:
        return []
    values = {"CUDA_VISIBLE_DEVICES": visible}
    if visible.strip() in ("", "-1"):
        return [
            Check("visible GPUs", "warning", f"CUDA_VISIBLE_DEVICES={visible!r} hides all GPUs", "unset it", values)
        ]
    return [Check("visible GPUs", "ok", f"CUDA_VISIBLE_DEVICES={visible}", values=values)]


def _whole(text: str) -> int | None:
    return int(text) if text.isdecimal() else None
