"""Official ``.pth`` checkpoints: fetched once, checked against a pinned hash, read without running any code in them."""

import http.client
import pickle
import struct
import urllib.error
import urllib.request
from pathlib import Path

import torch
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
"""What torch raises on bytes that are no checkpoint."""


def fetch(source: str, sha256: str, store: Path) -> Path:
    """The local file of a checkpoint, downloaded if ``source`` is a URL.

    Args:
        source: Path or http(s) URL.
        sha256: What the file's SHA-256 must be, in hex.
        store: Keeps downloads, by hash.

    Raises:
        InputError: No such file, the download fails, or the hash differs.
    """
    downloaded = source.startswith(("https://", "http://"))
    if downloaded:
        path = store / f"{sha256}.pth"
        if not path.exists():
            _download(source, path)
    else:
        path = Path(source)
        if not path.is_file():
            raise InputError(f"checkpoint {source} does not exist: correct `teacher.checkpoint` in params.yaml.")
    found = file_sha256(path)
    if found != sha256.lower():
        if downloaded:  # a file of a person's stays, even one that lies in the store
            path.unlink()
        raise InputError(
            f"checkpoint {source} has sha256 {found}, but `teacher.sha256` in params.yaml pins {sha256}: "
            "get the right file, or pin the hash you trust."
        )
    return path


def _download(url: str, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with (
            atomic.replacing(path) as draft,
            urllib.request.urlopen(url, timeout=60) as response,
            draft.open("wb") as stream,
        ):
            total = int(response.headers.get("Content-Length", 0)) or None
            with counter("download", "byte", total, scale=True) as bar:
                while chunk := response.read(CHUNK_BYTES):
                    bar.update(stream.write(chunk))
            if total and stream.tell() != total:
                raise ConnectionError(f"cut short after {stream.tell()} of {total} bytes")
    except (urllib.error.URLError, TimeoutError, ConnectionError, http.client.HTTPException) as error:
        raise InputError(f"checkpoint {url} cannot be downloaded ({error}): try again, or give a local path.") from None


def read(path: Path) -> dict[str, Tensor]:
    """The state dict of a ``.pth`` file; unwraps the keys that published checkpoints wrap it in.

    Raises:
        InputError: The file is no checkpoint, or would run code when loaded.
    """
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        reason = str(error).split(". ")[0].split("\n")[0] or type(error).__name__
        raise InputError(
            f"checkpoint {path} cannot be read as plain weights ({reason}): get the official file."
        ) from None
    for key in ("state_dict", "model"):
        if isinstance(state, dict) and isinstance(state.get(key), dict):
            state = state[key]
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise InputError(f"checkpoint {path} holds no state dict: get the official file.")
    return state
