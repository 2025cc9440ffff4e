"""Files of weights: download once, verify a pinned hash, and read without executing code."""

import fcntl
import http.client
import urllib.error
import urllib.request
from pathlib import Path

from torch import Tensor

from pipeline.core import atomic
from pipeline.core.artifact import file_sha256
from pipeline.core.errors import InputError
from pipeline.core.progress import counter
from pipeline.core.untrusted import tensor_file

CHUNK_BYTES = 1 << 20


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
        InputError: The file is not a checkpoint, is damaged, holds values that are not finite, or would execute code.
    """
    return tensor_file.read(path, remedy="get the official file")
