"""Processor, memory, disk and limits of this machine or container."""

import os
import platform
import resource
import shutil
from collections.abc import Sequence
from pathlib import Path

import psutil

from pipeline import __version__
from pipeline.core.checkout import main_checkout, store_path
from pipeline.doctor.check import Check, output_of
from pipeline.ops import cpu

_CGROUP = Path("/sys/fs/cgroup")
_GIB = 1 << 30
_LEAST_MEMORY_GIB, _LEAST_DISK_GIB, _LEAST_SHARED_GIB = 4, 10, 1
_LEAST_FILES = 1024
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS", "TORCH_NUM_THREADS")
_GIT_S = 5.0


def software() -> Sequence[Check]:
    """Versions of this package, Python and the system."""
    code, revision, _ = (
        output_of(["git", "describe", "--always", "--dirty"], _GIT_S) if shutil.which("git") else (1, "", "")
    )
    values = {
        "sam-distillery": __version__,
        "commit": revision.strip() if code == 0 else None,
        "python": platform.python_version(),
        "system": platform.platform(),
    }
    text = ", ".join(f"{name} {value}" for name, value in values.items() if value)
    return [Check("software", "ok", text, values=values)]


def processor() -> Sequence[Check]:
    """The processor's name and its instructions for int8 and bf16."""
    found, exact = cpu.instructions(), cpu.has_exact_int8()
    values = {"name": cpu.processor(), "instructions": list(found), "exact_int8": exact}
    int8 = "int8 products are exact" if exact else "no VNNI: int8 files need quantize.reduce_range: true, the default"
    text = f"{cpu.processor()}: {' '.join(found) or 'unknown instructions'}; {int8}"
    if platform.machine().lower() in ("x86_64", "amd64") and found and "avx2" not in found:
        return [Check("processor", "warning", f"{text}; no AVX2", "expect a tenth of the speed", values)]
    return [Check("processor", "ok", text, values=values)]


def cores() -> Sequence[Check]:
    """Cores that this process may use, and the variables that limit threads."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _quota()
    available = min(usable, quota) if quota else usable
    values = {"machine": os.cpu_count(), "usable": usable, "quota": quota}
    limit = f", quota of the container {quota:g}" if quota else ""
    checks = [Check("cores", "ok", f"{usable} usable of {os.cpu_count()}{limit}", values=values)]
    variables = {name: os.environ[name] for name in _THREADS if os.environ.get(name)}
    text = ", ".join(f"{name}={value}" for name, value in variables.items()) or "no variable limits them"
    numbers = [int(value) for value in variables.values() if value.isdecimal()]
    if len(numbers) < len(variables):
        check = Check("threads", "warning", text, "set these to whole numbers or unset them", variables)
    elif any(number > available for number in numbers):
        check = Check("threads", "warning", f"{text}, more than the cores", f"lower them to {available:g}", variables)
    elif 1 in numbers and available >= 4:
        check = Check("threads", "warning", text, "unset them, unless many processes share the machine", variables)
    else:
        check = Check("threads", "ok", text, values=variables)
    return [*checks, check]


def memory() -> Sequence[Check]:
    """Main memory, within the container's limit; and shared memory, through which loader processes hand over images."""
    whole, free = psutil.virtual_memory().total, psutil.virtual_memory().available
    limit, used = _number("memory.max"), _number("memory.current")
    if limit and limit < whole:
        whole, free = limit, min(free, max(0, limit - (used or 0)))
    values = {"total_bytes": whole, "available_bytes": free}
    text = f"{free / _GIB:.1f} GiB free of {whole / _GIB:.1f} GiB"
    if free < _LEAST_MEMORY_GIB * _GIB:
        main = Check(
            "memory", "warning", text, f"end other programs: a stage needs about {_LEAST_MEMORY_GIB} GiB", values
        )
    else:
        main = Check("memory", "ok", text, values=values)
    return [main, *_shared_memory()]


def _shared_memory() -> Sequence[Check]:
    if not (path := Path("/dev/shm")).is_dir():
        return []
    size = shutil.disk_usage(path).total
    values = {"total_bytes": size}
    if size < _LEAST_SHARED_GIB * _GIB:
        remedy = "start the container with --shm-size 8g, or --ipc host"
        return [Check("shared memory", "warning", f"/dev/shm holds {size >> 20} MiB", remedy, values)]
    return [Check("shared memory", "ok", f"/dev/shm holds {size / _GIB:.1f} GiB", values=values)]


def disk() -> Sequence[Check]:
    """Free disk of the checkout and of the store of embeddings, if that is on another disk."""
    directories = {"disk": main_checkout(), "disk of the store": _existing(store_path("."))}
    checks, devices = [], set[int]()
    for name, directory in directories.items():
        device = directory.stat().st_dev
        if device in devices:
            continue
        devices.add(device)
        usage = shutil.disk_usage(directory)
        values = {"free_bytes": usage.free, "total_bytes": usage.total}
        text = f"{usage.free / 1e9:,.0f} GB free of {usage.total / 1e9:,.0f} GB"
        if usage.free < _LEAST_DISK_GIB * _GIB:
            remedy = "free some (`dvc gc --workspace` empties DVC's cache), or set SAM_DISTILLERY_STORE to another disk"
            checks.append(Check(name, "warning", text, remedy, values))
        else:
            checks.append(Check(name, "ok", text, values=values))
    return checks


def limits() -> Sequence[Check]:
    """The number of files that may be open."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    values = {"open_files": soft}
    if 0 <= soft < _LEAST_FILES:
        remedy = f"ulimit -n {_LEAST_FILES if hard < 0 else min(hard, 65536)}"
        return [Check("limits", "warning", f"{soft} open files", remedy, values)]
    return [Check("limits", "ok", f"{soft} open files", values=values)]


def _existing(path: Path) -> Path:
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())


def _quota() -> float | None:
    """Processors that a container may use; None without a limit."""
    try:
        quota, period = (_CGROUP / "cpu.max").read_text().split()
        return int(quota) / int(period)
    except (OSError, ValueError):
        return None


def _number(name: str) -> int | None:
    try:
        return int((_CGROUP / name).read_text())
    except (OSError, ValueError):
        return None
