"""Files of weights: download once, verify a pinned hash, and read without executing code."""

import fcntl
import http.client
import pickle
import struct
import urllib.error
import urllib.request
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from pipeline.core import atomic
from pipeline.core.artifact import file_sha256
from pipeline.core.errors import InputError
from pipeline.core.progress import counter

CHUNK_BYTES = 1 << 20
_UNREADABLE = (
    pickle.UnpicklingError, struct.error, ArithmeticError, AssertionError, AttributeError, EOFError, LookupError,
    RuntimeError, TypeError, ValueError,
)  # fmt: skip
"""Errors that `torch.load` raises on files that are not checkpoints."""
_DTYPES = (
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.int32,
    torch.int64,
    torch.uint8,
    torch.bool,
)


def fetch(source: str, sha256: str, store: Path, key: str) -> Path:
    """Return the local file of a checkpoint, downloaded if ``source`` is a URL.

    Args:
        source: Path or http(s) URL.
        sha256: Expected SHA-256, in hex.
        store: Download directory; files are named by hash.
        key: The key of params.yaml that names the source, for errors.

    Raises:
        InputError: The file does not exist, the download fails, or the hash differs.
    """
    downloaded = source.startswith(("https://", "http://"))
    if downloaded:
        path = store / f"{sha256}.pth"
        if not path.exists():
            _download(source, path)
    else:
        path = Path(source)
        if not path.is_file():
            raise InputError(f"checkpoint {source} does not exist: correct `{key}.checkpoint` in params.yaml.")
    try:
        actual = file_sha256(path)
    except OSError as error:
        raise InputError(f"checkpoint {source} cannot be read ({error.strerror}): check its permissions.") from None
    if actual != sha256.lower():
        if downloaded:  # never delete a user's own file, even inside the store
            path.unlink()
        raise InputError(
            f"checkpoint {source} has sha256 {actual}, but `{key}.sha256` in params.yaml pins {sha256}: "
            "get the right file, or pin the hash you trust."
        )
    return path


def _download(url: str, path: Path) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        waiting = path.with_name(f".{path.name}.lock")
        with waiting.open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # of several processes one downloads
            try:
                if not path.exists():
                    _receive(url, path)
            finally:
                waiting.unlink(missing_ok=True)
    except (OSError, http.client.HTTPException) as error:
        raise InputError(f"checkpoint {url} cannot be downloaded ({error}): try again, or give a local path.") from None


def _receive(url: str, path: Path) -> None:
    with (
        atomic.replacing(path, per_process=True) as draft,
        urllib.request.urlopen(url, timeout=60) as response,
        draft.open("wb") as stream,
    ):
        total = int(response.headers.get("Content-Length", 0)) or None
        with counter("download", "byte", total, scale=True) as bar:
            while chunk := response.read(CHUNK_BYTES):
                bar.update(stream.write(chunk))
        if total and stream.tell() != total:
            raise ConnectionError(f"cut short after {stream.tell()} of {total} bytes")


def read(path: Path) -> dict[str, Tensor]:
    """Read a state dict, also if it is nested in ``state_dict`` or ``model``.

    Args:
        path: A safetensors file or one of `torch.save`; the content decides which, not the name.

    Raises:
        InputError: The file is not a checkpoint, is damaged, or would execute code when loaded.
    """
    state = _safetensors(path) if _is_safetensors(path) else _pickle(path)
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise InputError(f"checkpoint {path} holds no state dict: get the official file.")
    if not all(isinstance(key, str) for key in state):
        raise InputError(f"checkpoint {path} has keys that are not names: get the official file.")
    for key, value in state.items():
        plain = value.layout is torch.strided and value.device.type == "cpu" and not value.is_nested
        if not plain or value.dtype not in _DTYPES:
            raise InputError(f"checkpoint {path}: {key} is not a plain tensor ({value.dtype}): get the official file.")
    return state


def _is_safetensors(path: Path) -> bool:
    """Whether the file begins like safetensors: the length of a JSON header in 8 bytes, and its brace."""
    with path.open("rb") as stream:
        start = stream.read(9)
    return len(start) == 9 and start[8:] == b"{" and int.from_bytes(start[:8], "little") < 1 << 32


def _safetensors(path: Path) -> object:
    try:
        return load_file(path)
    except (SafetensorError, OSError, RuntimeError, NotImplementedError, KeyError, ValueError) as error:
        raise InputError(f"checkpoint {path} is a damaged safetensors file ({error}): get the official file.") from None


def _pickle(path: Path) -> object:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        reason = str(error).split(". ")[0].split("\n")[0] or type(error).__name__
        raise InputError(
            f"checkpoint {path} cannot be read as plain weights ({reason}): get the official file."
        ) from None
