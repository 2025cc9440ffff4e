"""The processor at hand: its name, the instructions that decide how it computes int8 and bf16, and library versions."""

import platform
import re
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from pipeline.core.artifact import Card
from pipeline.core.errors import InputError

EXACT_FACTOR = 64
"""Largest magnitude of an int8 weight that every processor multiplies exactly.

x86 processors without VNNI multiply int8 by ``vpmaddubsw``: it adds pairs of products of an unsigned and a signed byte
in 16 bits and clips the sum at 32,767. Two products of 255 and 64 are 32,640; two of 255 and 127 are clipped. VNNI, AMX
and the dot products of ARM add in 32 bits."""
WEIGHT_RANGE = "weight_range"
"""On the card of an int8 artifact: the largest magnitude of what int8 arithmetic multiplies activations with."""
LIBRARIES = ("torch", "numpy", "onnxruntime", "openvino", "tensorrt")
"""Packages whose version decides what an engine computes, and how fast."""
_INSTRUCTIONS = (
    "avx2", "avx512f", "avx_vnni", "avx512_vnni", "amx_int8", "avx512_bf16", "amx_bf16",  # x86
    "asimddp", "i8mm", "bf16",  # ARM
)  # fmt: skip
_FULL_RANGE = 127
_EXACT = {"avx_vnni", "avx512_vnni", "amx_int8"}
_CPUINFO = Path("/proc/cpuinfo")


@cache
def processor() -> str:
    """The processor's name, as the system gives it."""
    return _field("model name") or platform.processor() or platform.machine()


@cache
def instructions() -> tuple[str, ...]:
    """Those of the processor's instruction sets that decide how int8 and bf16 are computed; empty where unknown."""
    known = set((_field("flags") or _field("Features")).split())
    return tuple(name for name in _INSTRUCTIONS if name in known)


def has_exact_int8() -> bool:
    """Whether int8 products are added in 32 bits, so that no weight saturates; False where that is unknown."""
    x86 = platform.machine().lower() in ("x86_64", "amd64", "i386", "i686")
    return not x86 or bool(_EXACT & set(instructions()))


def versions() -> dict[str, str]:
    """Versions of the `LIBRARIES` that are installed."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


def check_exact(source: Path, card: Card) -> None:
    """See that this processor computes an int8 artifact as it was meant.

    Raises:
        InputError: Its weights use the full range of int8, and the processor would saturate.
    """
    # Cards of earlier versions do not say; their int8 weights fill the range.
    reach = int(card.load.get(WEIGHT_RANGE, _FULL_RANGE if "int8" in (card.precision or "") else 0))
    if reach > EXACT_FACTOR and not has_exact_int8():
        raise InputError(
            f"{source} has int8 weights up to {reach}, which saturate on this processor ({processor()}, without VNNI): "
            "make it anew with quantize.reduce_range set to true."
        )


def _field(name: str) -> str:
    """The first entry of this name in Linux's description of the processor; empty where there is none."""
    try:
        found = re.search(rf"^{name}\s*:\s*(.*)$", _CPUINFO.read_text(), re.MULTILINE)
    except OSError:
        return ""
    return found[1].strip() if found else ""
