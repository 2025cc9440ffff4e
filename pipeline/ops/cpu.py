"""The current processor: name, instruction sets relevant to int8 and bf16, and library versions."""

import platform
import re
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pipeline.core.artifact import Card
from pipeline.core.errors import InputError

EXACT_FACTOR = 64
"""Largest magnitude of an int8 weight that every processor multiplies exactly.

x86 processors without VNNI multiply int8 by ``vpmaddubsw``, which adds pairs of products of an unsigned and a signed
byte in 16 bits and saturates at 32,767. Two products of 255 and 64 sum to 32,640; two of 255 and 127 saturate. VNNI,
AMX and ARM's dot products accumulate in 32 bits."""
WEIGHT_RANGE = "weight_range"
"""Key on the card of an int8 artifact: the largest magnitude of its int8 weights."""
LIBRARIES = ("torch", "numpy", "onnxruntime", "openvino", "tensorrt")
"""Packages whose versions affect an engine's results and speed."""
_INSTRUCTIONS = (
    "avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "avx512_bf16", "amx_bf16",  # x86
    "asimddp", "i8mm", "bf16",  # ARM
)  # fmt: skip
_FULL_RANGE = 127
_EXACT = {"avx_vnni", "avx512_vnni", "amx_int8"}
_CPUINFO = Path("/proc/cpuinfo")


@cache
def processor() -> str:
    """The processor's name as reported by the system."""
    return _field("model name") or platform.processor() or platform.machine()


@cache
def instructions() -> tuple[str, ...]:
    """The processor's instruction sets relevant to int8 and bf16; empty if unknown."""
    known = set((_field("flags") or _field("Features")).split())
    return tuple(name for name in _INSTRUCTIONS if name in known)


def has_exact_int8() -> bool:
    """Whether int8 products accumulate in 32 bits, so that no weight saturates; False if unknown."""
    x86 = platform.machine().lower() in ("x86_64", "amd64", "i386", "i686")
    return not x86 or bool(_EXACT & set(instructions()))


def versions() -> dict[str, str]:
    """Versions of the `LIBRARIES` that are installed."""
    installed = {}
    for name in LIBRARIES:
        try:
            installed[name] = version(name)
        except PackageNotFoundError:
            continue
    return installed


def check_exact(source: Path, card: Card) -> None:
    """Check that this processor computes an int8 artifact without saturation.

    Raises:
        InputError: Its weights use the full range of int8, and the processor would saturate.
    """
    # Cards of earlier versions lack the key; their int8 weights use the full range.
    largest = int(card.load.get(WEIGHT_RANGE, _FULL_RANGE if "int8" in (card.precision or "") else 0))
    if largest > EXACT_FACTOR and not has_exact_int8():
        raise InputError(
            f"{source} has int8 weights up to {largest}, which saturate on this processor ({processor()}, no VNNI): "
            "recreate it with quantize.reduce_range set to true."
        )


def _field(name: str) -> str:
    """First entry of this name in ``/proc/cpuinfo``; empty if there is none."""
    try:
        match = re.search(rf"^{name}\s*:\s*(.*)$", _CPUINFO.read_text(), re.MULTILINE)
    except OSError:
        return ""
    return match[1].strip() if match else ""
