"""Checks of MLflow and Prefect: servers answer, SQLite files are sound."""

import os
import socket
import sqlite3
import ssl
import time
from collections.abc import Callable
from http.client import HTTPException
from pathlib import Path
from threading import Thread
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

from pipeline.core.errors import InputError
from pipeline.core.preflight.machine import check_writable
from pipeline.core.tracking_uri import sqlite_file, tracking_uri, without_password

TIMEOUT_S = 5.0
"""Seconds within which a server must answer."""
_SQLITE_HEADER = b"SQLite format 3\0"
_SQLITE_CHECK_S = 1.0
_PORTS = {"postgresql": 5432, "mysql": 3306, "mssql": 1433}


def check_tracking(uri: str | None = None) -> None:
    """Check that MLflow's server answers, or that its SQLite file is sound.

    Args:
        uri: URI of the store; default: that of all runs.

    Raises:
        InputError: The store cannot be used.
    """
    uri = tracking_uri() if uri is None else uri
    remedy = "start it, or unset MLFLOW_TRACKING_URI to use mlflow.db."
    if path := sqlite_file(uri):
        check_database(path, "MLflow's database")
    elif uri.startswith(("http://", "https://")):
        check_server("MLflow", uri, f"{without_password(uri).rstrip('/')}/health", remedy)
    elif (parts := urlsplit(uri)).hostname and (scheme := parts.scheme.partition("+")[0]) in _PORTS:
        check_port("MLflow's database", uri, parts.hostname, parts.port or _PORTS[scheme], remedy)


def check_prefect() -> None:
    """Check that the Prefect server of ``PREFECT_API_URL`` answers; without one, that the local database is sound.

    Raises:
        InputError: It cannot be used.
    """
    if uri := os.environ.get("PREFECT_API_URL"):
        remedy = "start it, or unset PREFECT_API_URL to use a temporary one."
        check_server("Prefect", uri, f"{without_password(uri).rstrip('/')}/health", remedy)
    elif home := os.environ.get("PREFECT_HOME"):
        directory = Path(home)
        if directory.exists() and not directory.is_dir():
            raise InputError(f"{directory} is not a directory, but PREFECT_HOME must be: delete it.")
        check_writable([directory])
        check_database(directory / "prefect.db", "Prefect's database")


def check_database(path: Path, what: str) -> None:
    """Check that a SQLite file, if it exists, is a sound database.

    Args:
        path: The file. Its pages are checked for up to a second.
        what: Whose database it is, for the message.

    Raises:
        InputError: It is not, or its directory cannot be written.
    """
    if not path.exists():
        return
    remedy = "restore it from a copy, or move it away; a new one is then created."
    if not path.is_file():
        raise InputError(f"{what} {path} is not a file: {remedy}")
    try:
        with path.open("rb") as stream:
            header = stream.read(len(_SQLITE_HEADER))
        if header and header != _SQLITE_HEADER:  # SQLite takes an empty file for an empty database
            raise InputError(f"{what} {path} is not a SQLite database: {remedy}")
        fault = _sqlite_fault(path)
    except OSError as error:
        raise InputError(f"{what} {path} cannot be read ({error.strerror}): change its permissions.") from None
    if fault:
        raise InputError(f"{what} {path} is damaged ({fault}): {remedy}")
    if not os.access(path, os.W_OK):
        raise InputError(f"{what} {path} cannot be written: change its permissions.")
    check_writable([path.parent])  # for the journal


def _sqlite_fault(path: Path) -> str:
    """What is wrong with a SQLite file; empty if it is sound, in use by another process, or too large to check."""
    # Not read-only, since SQLite rolls back what a killed process left.
    connection = sqlite3.connect(f"{path.absolute().as_uri()}?mode=rw", uri=True, timeout=TIMEOUT_S)
    end = time.monotonic() + _SQLITE_CHECK_S
    connection.set_progress_handler(lambda: time.monotonic() > end, 100_000)
    try:
        result = str(connection.execute("PRAGMA quick_check(1)").fetchone()[0])
    except sqlite3.OperationalError as error:
        busy = any(word in str(error) for word in ("locked", "busy", "interrupted"))
        return "" if busy else str(error)
    except sqlite3.DatabaseError as error:
        return str(error)
    finally:
        connection.close()
    return "" if result == "ok" else " ".join(result.split())[:200]


def check_server(name: str, uri: str, health: str, remedy: str) -> None:
    """Check that a server answers a request; any answer but a fault of the server will do.

    Args:
        name: Whose server it is, for the message.
        uri: Its address, for the message.
        health: The address that is asked.
        remedy: What to do if it does not answer.

    Raises:
        InputError: It does not answer.
    """

    def ask() -> str:
        try:
            urlopen(Request(health, headers={"User-Agent": "sam-distillery"}), timeout=TIMEOUT_S).close()
        except HTTPError as error:
            return f"answered with status {error.code}" if error.code >= 500 else ""
        except URLError as error:
            if isinstance(error.reason, ssl.SSLError):  # its own client may have other certificates
                return ""
            return _network_reason(error.reason)
        except ValueError as error:
            return f"has an invalid address: {error}"
        return ""

    _require_answer(name, uri, ask, remedy)


def check_port(name: str, uri: str, host: str, port: int, remedy: str) -> None:
    """Check that something listens on a port; arguments and errors as `check_server`."""

    def ask() -> str:
        socket.create_connection((host, port), TIMEOUT_S).close()
        return ""

    _require_answer(name, uri, ask, remedy)


def _require_answer(name: str, uri: str, ask: Callable[[], str], remedy: str) -> None:
    """Run ``ask`` in a thread, since neither the resolver nor a slow answer obeys a socket's timeout."""
    faults = list[str]()

    def run() -> None:
        try:
            faults.append(ask())
        except OSError as error:
            faults.append(_network_reason(error))
        except HTTPException as error:
            faults.append(f"is not an HTTP server ({type(error).__name__})")

    thread = Thread(target=run, daemon=True)
    thread.start()
    thread.join(TIMEOUT_S)
    fault = next(iter(faults), f"did not answer within {TIMEOUT_S:.0f} s")
    if fault:
        raise InputError(f"{name} at {without_password(uri)} {fault}: {remedy}")


def _network_reason(reason: object) -> str:
    if isinstance(reason, TimeoutError):
        return f"did not answer within {TIMEOUT_S:.0f} s"
    text = reason.strerror or str(reason) if isinstance(reason, OSError) else str(reason)
    return f"cannot be reached ({text})"
