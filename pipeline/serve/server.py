"""The process: key, sockets, signals."""

import logging
import os
import signal
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import uvicorn

from pipeline.core.errors import InputError
from pipeline.core.progress import notice
from pipeline.core.untrusted.regular_file import read_text
from pipeline.runtime.processor import keep_pages
from pipeline.serve.app import build
from pipeline.serve.limits import LOCAL_NAMES
from pipeline.serve.model import Model
from pipeline.serve.service import Service
from pipeline.serve.settings import ServeSettings
from pipeline.serve.source import Source

KEY_VARIABLE = "SAM_DISTILLERY_API_KEY"
_SHORTEST_KEY = 16
_LARGEST_KEY = 4096
_GRACE_S = 30


def serve(source: Source, settings: ServeSettings) -> str:
    """Load a model, repeat its self-check, and answer requests until SIGINT or SIGTERM.

    Returns:
        One line about the end.

    Raises:
        InputError: The model, the key, the certificate or the address cannot be used.
    """
    logging.basicConfig(format="%(asctime)s %(message)s", datefmt="%H:%M:%S")
    key = _key(settings)
    if (settings.tls_certificate is None) != (settings.tls_key is None):
        raise InputError("--tls-certificate and --tls-key go together: give both or neither.")
    local = settings.host in LOCAL_NAMES or settings.host.startswith("127.")
    with listening(settings) as listener:
        keep_pages()
        model = Model.fetch(source, source.version(), settings.device, settings.threads)
        service = Service(model, source, settings)
        hosts = settings.allowed_hosts or (LOCAL_NAMES if local else ())
        server = uvicorn.Server(_configured(build(service, key, tuple(map(str.lower, hosts))), settings))
        scheme = "https" if settings.tls_certificate else "http"
        host, port = listener.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        notice(f"listening on {scheme}://{shown}:{port}")
        if not local and key is None:
            notice(f"{settings.host} can be reached without a key: set {KEY_VARIABLE} or --api-key-file.")
        with _signals_end_quietly():
            server.run([listener])
    return "stopped"


@contextmanager
def _signals_end_quietly() -> Iterator[None]:
    """Ignore the signals that uvicorn raises again once it has shut down."""
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _configured(app: object, settings: ServeSettings) -> uvicorn.Config:
    try:
        config = uvicorn.Config(
            app,  # type: ignore[arg-type]
            log_level="warning",
            access_log=False,
            server_header=False,
            timeout_keep_alive=10,
            timeout_graceful_shutdown=_GRACE_S,
            ssl_certfile=settings.tls_certificate,
            ssl_keyfile=settings.tls_key,
        )
        config.load()
    except (ssl.SSLError, OSError) as error:
        raise InputError(f"--tls-certificate or --tls-key cannot be used ({error}): give PEM files.") from None
    return config


def _key(settings: ServeSettings) -> str | None:
    """The key of the file or the environment.

    Raises:
        InputError: It is too short or cannot be read.
    """
    path: Path | None = settings.api_key_file
    key = os.environ.get(KEY_VARIABLE) if path is None else read_text(path, _LARGEST_KEY).strip()
    if key is None:
        return None
    if len(key) < _SHORTEST_KEY or not key.isascii() or not key.isprintable() or " " in key:
        where = str(path) if path else KEY_VARIABLE
        raise InputError(f"{where}: a key must have at least {_SHORTEST_KEY} visible ASCII characters.")
    return key


def listening(settings: ServeSettings) -> socket.socket:
    """A socket at the address of the settings.

    Raises:
        InputError: The address cannot be used.
    """
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    listener = socket.socket(family)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((settings.host, settings.port))
    except OSError as error:
        listener.close()
        raise InputError(
            f"{settings.host}:{settings.port} cannot be used ({error.strerror}): give another --host or --port."
        ) from None
    listener.set_inheritable(True)
    return listener
