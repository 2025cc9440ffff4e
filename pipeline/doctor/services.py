"""The checkout, git, and the servers that are configured: DVC's remote, MLflow, Prefect."""

import configparser
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from pipeline.core import preflight
from pipeline.core.config import PARAMS, read_params
from pipeline.core.errors import InputError
from pipeline.core.preflight.services import TIMEOUT_S, check_port, check_server
from pipeline.core.tracking_uri import sqlite_file, tracking_uri, without_password
from pipeline.doctor.check import Check, of_error, output_of

_PORTS = {"ssh": 22, "sftp": 22, "hdfs": 8020}
_HOSTS = {"s3": "s3.amazonaws.com", "gs": "storage.googleapis.com", "gdrive": "www.googleapis.com"}


def git() -> Sequence[Check]:
    """Git and its repository."""
    if shutil.which("git") is None:
        return [Check("git", "fault", "git is not installed or not on PATH", "install it, or add it to PATH")]
    _, output, _ = output_of(["git", "--version"], TIMEOUT_S)
    return [*_checked("git", preflight.check_git, output.strip().removeprefix("git version "))]


def checkout() -> Sequence[Check]:
    """The current directory: encoding, permissions, dvc.lock."""

    def all_of() -> None:
        preflight.check_encoding()
        preflight.check_checkout()
        preflight.check_writable([Path(), Path("artifacts"), Path(".dvc"), Path(".dvc/tmp"), Path(".dvc/cache")])
        preflight.check_lock_file()

    return _checked("checkout", all_of, "a checkout that can be written")


def params() -> Sequence[Check]:
    """params.yaml, and whether the devices it names can be here at all."""
    try:
        content = read_params()
    except InputError as error:
        return [of_error("params.yaml", error, "fault" if PARAMS.exists() else "warning")]
    students = ", ".join(map(str, content.get("students") or ())) or "no students"
    devices = sorted({str(device) for device in _devices(content)})
    values = {"students": content.get("students"), "devices": devices}
    text = f"{students}" + (f"; devices {', '.join(devices)}" if devices else "")
    if any(device.startswith("cuda") for device in devices) and not any(Path("/dev").glob("nvidia[0-9]*")):
        remedy = "set `device: cpu`, or hand the stages to a GPU worker (docs/how-to/gpu-workers.md)"
        return [Check("params.yaml", "warning", f"{text}, but this machine has no GPU", remedy, values)]
    return [Check("params.yaml", "ok", text, values=values)]


def dvc_remote() -> Sequence[Check]:
    """Whether DVC's default remote answers."""
    name, remote = _default_remote()
    if not name:
        return [Check("dvc remote", "ok", "none is configured: results stay on this machine", values={"remote": None})]
    url = remote.get("url", "")
    shown = without_password(url)
    values = {"remote": name, "url": shown}
    remedy = f"correct it with `dvc remote modify {name} url URL`, or start its server."
    parts, check = urlsplit(url), f"DVC's remote {name!r}"
    endpoint = remote.get("endpointurl", "")
    if not parts.scheme or parts.scheme == "file":
        path = Path(".dvc", parts.path).resolve() if not parts.path.startswith("/") else Path(parts.path)
        if not path.is_dir():
            return [Check("dvc remote", "fault", f"{name}: {shown} is not a folder", remedy.rstrip("."), values)]
        return [Check("dvc remote", "ok", f"{name}: {shown}", values=values)]
    if address := endpoint or (url if parts.scheme in ("http", "https") else ""):
        call = lambda: check_server(check, url, without_password(address), remedy)  # noqa: E731
    elif parts.scheme in _PORTS and parts.hostname:
        host, port = parts.hostname, parts.port or _PORTS[parts.scheme]
        call = lambda: check_port(check, url, host, port, remedy)  # noqa: E731
    elif parts.scheme in _HOSTS:
        call = lambda: check_port(check, url, _HOSTS[parts.scheme], 443, remedy)  # noqa: E731
    else:
        text = f"{name}: {shown}; nothing was asked of {parts.scheme} remotes"
        return [Check("dvc remote", "ok", text, "`dvc status --cloud` asks it", values)]
    return _checked("dvc remote", call, f"{name}: {shown} answers", values)


def mlflow() -> Sequence[Check]:
    """MLflow's server or database."""
    uri = tracking_uri()
    shown = path.name if (path := sqlite_file(uri)) else without_password(uri)
    return _checked("mlflow store", preflight.check_tracking, shown, {"uri": shown})


def prefect() -> Sequence[Check]:
    """Prefect's server, if one is configured."""
    uri = without_password(os.environ.get("PREFECT_API_URL", ""))
    text = f"{uri} answers" if uri else "PREFECT_API_URL is unset: each flow starts a temporary server"
    return _checked("prefect server", preflight.check_prefect, text, {"uri": uri or None})


def _checked(
    name: str, check: Callable[[], None], text: str, values: Mapping[str, Any] | None = None
) -> Sequence[Check]:
    try:
        check()
    except InputError as error:
        return [of_error(name, error)]
    return [Check(name, "ok", text, values=values or {})]


def _default_remote() -> tuple[str, Mapping[str, str]]:
    """Name and settings of DVC's default remote; empty if there is none."""
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    with suppress(configparser.Error):
        parser.read([".dvc/config", ".dvc/config.local"])
    name = parser.get("core", "remote", fallback="")
    section = next((part for part in parser.sections() if part.strip("'") == f'remote "{name}"'), "")
    return name, dict(parser[section]) if section else {}


def _devices(node: Any) -> Iterator[str]:
    """Values of all keys ``device``."""
    for key, value in node.items() if isinstance(node, Mapping) else ():
        if key == "device" and isinstance(value, str):
            yield value
        else:
            yield from _devices(value)
