"""Weights: safetensors, or PyTorch's own files read without executing code. Dense tensors of finite real numbers."""

import pickle
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pipeline.core.errors import InputError
from pipeline.core.untrusted.regular_file import opened

LARGEST = 32 << 30
"""Bytes of a file, and of all tensors in it; SAM's ViT-H has 2.6 GB."""
LONGEST_HEADER = 100_000_000
"""Bytes of a safetensors header, the library's own limit."""
_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_DTYPES = (
    *_FLOAT8,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.uint8,
    torch.bool,
)
_DAMAGED = (
    pickle.UnpicklingError, SafetensorError, struct.error, zipfile.BadZipFile, ArithmeticError, AssertionError,
    AttributeError, EOFError, LookupError, NotImplementedError, OSError, RuntimeError, TypeError, ValueError,
)  # fmt: skip
"""Errors that PyTorch and safetensors raise on files that are not weights."""


def read(path: Path, *, remedy: str) -> dict[str, Tensor]:
    """Read a state dict, also if it is nested in ``state_dict`` or ``model``.

    Args:
        path: A safetensors file or one of `torch.save`; the content decides which, not the name.
        remedy: What to do about a bad file, without a final stop.

    Raises:
        MissingFileError: There is no such file.
        InputError: The file is not weights, is damaged, exceeds a bound, or would execute code when loaded.
    """
    state = safetensors(path, remedy=remedy) if is_safetensors(path) else _pickle(path, remedy)
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise InputError(f"checkpoint {path} holds no state dict: {remedy}.")
    if not all(isinstance(key, str) for key in state):
        raise InputError(f"checkpoint {path} has keys that are not names: {remedy}.")
    _check(state, path, remedy)
    return state


def safetensors(path: Path, *, remedy: str, finite: bool = True) -> dict[str, Tensor]:
    """Read a safetensors file.

    Args:
        path: The file.
        remedy: What to do about a bad file, without a final stop.
        finite: Whether to refuse NaN and infinity.

    Raises:
        MissingFileError: There is no such file.
        InputError: It is not one, is damaged, or its tensors are not dense, finite and real.
    """
    _check_size(path, remedy)
    try:
        state = load_file(path)
    except _DAMAGED as error:
        raise InputError(f"checkpoint {path} is a damaged safetensors file ({_reason(error)}): {remedy}.") from None
    _check(state, path, remedy, finite=finite)
    return state


def is_safetensors(path: Path) -> bool:
    """Whether the file begins like safetensors: the length of a JSON header in 8 bytes, and its brace."""
    with opened(path) as stream:
        start = stream.read(9)
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") <= LONGEST_HEADER


def _pickle(path: Path, remedy: str) -> Any:
    _check_size(path, remedy)
    try:
        if zipfile.is_zipfile(path):
            _check_zip(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except _DAMAGED as error:
        raise InputError(f"checkpoint {path} cannot be read as plain weights ({_reason(error)}): {remedy}.") from None


def _check_size(path: Path, remedy: str) -> None:
    with opened(path, remedy=f"{remedy.capitalize()}.") as stream:
        size = stream.seek(0, 2)
    if size > LARGEST:
        raise InputError(f"checkpoint {path} has {size} bytes, more than {LARGEST}: {remedy}.")


def _check_zip(path: Path) -> None:
    """Refuse what unpacks to more than the file: `torch.save` does not compress."""
    with zipfile.ZipFile(path) as archive:
        packed = [info.filename for info in archive.infolist() if info.file_size > max(info.compress_size, 1 << 20)]
    if packed:
        raise ValueError(f"{packed[0]:.60} is compressed")


def _check(state: Mapping[str, Tensor], path: Path, remedy: str, *, finite: bool = True) -> None:
    total = 0
    for key, value in state.items():
        plain = value.layout is torch.strided and value.device.type == "cpu" and not value.is_nested
        if not plain or value.dtype not in _DTYPES:
            raise InputError(f"checkpoint {path}: {key:.200} is not a plain tensor ({value.dtype}): {remedy}.")
        size = value.numel() * value.element_size()
        total += size
        if size > value.untyped_storage().nbytes() or total > LARGEST:  # strides of 0 make much of little
            raise InputError(
                f"checkpoint {path}: {key:.200} has shape {tuple(value.shape)}, more than it holds: {remedy}."
            )
        if finite and not _is_finite(value):
            raise InputError(f"checkpoint {path} holds values that are not finite ({key:.200}): get an undamaged file.")


def _is_finite(value: Tensor) -> bool:
    if not value.is_floating_point():
        return True
    # isfinite lacks the types of 8 bits
    return bool(torch.isfinite(value.float() if value.dtype in _FLOAT8 else value).all())


def _reason(error: BaseException) -> str:
    return str(error).split(". ")[0].split("\n")[0][:200] or type(error).__name__
