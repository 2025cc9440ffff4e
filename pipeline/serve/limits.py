"""The outermost layer: key, host, requests in progress, size of bodies, time; figures of each request."""

import asyncio
import hmac
import logging
from collections.abc import Collection
from time import perf_counter
from typing import Any

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from pipeline.serve.metrics import Metrics
from pipeline.serve.problems import Problem, busy, failed, timed_out, too_large
from pipeline.serve.settings import ServeSettings

_LOG = logging.getLogger("pipeline.serve")
_LIMITED = "/v1/"
"""Paths that count as requests in progress and may have a body."""
_WITH_KEY = ("/v1/", "/metrics", "/openapi.json")
_BODIES_IN_MEMORY = 8
"""Bodies of the largest size that may be in memory together."""
_ROUTES = frozenset({"/", "/v1/embed", "/v1/predict", "/v1/everything", "/v1/model", "/healthz", "/readyz", "/metrics"})
"""Paths with figures of their own."""
_STREAMS = "/v1/everything"
LOCAL_NAMES = ("localhost", "127.0.0.1", "::1")


class Limits:
    """ASGI middleware that refuses what exceeds a limit and answers every failure in one form.

    Bodies are read here, completely, before the application sees the request.

    Args:
        app: The application.
        settings: Limits.
        metrics: Where requests are recorded.
        key: Key that requests must send; None for none.
        hosts: Accepted names in the Host header; empty for all.
    """

    def __init__(
        self, app: ASGIApp, settings: ServeSettings, metrics: Metrics, key: str | None, hosts: Collection[str]
    ) -> None:
        self._app, self._settings, self._metrics = app, settings, metrics
        self._key, self._hosts = None if key is None else key.encode(), frozenset(hosts)
        self._in_progress = self._body_bytes = 0
        self._routes = frozenset(
            {"/", "/v1/embed", "/v1/predict", "/v1/everything", "/v1/model", "/healthz", "/readyz"}
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return
        answered = _Answered(send)
        route = scope["path"] if scope["path"] in _ROUTES else "other"
        start = perf_counter()
        try:
            await self._handle(scope, receive, answered)
        except Problem as problem:
            await answered.fail(scope, receive, problem)
        except Exception:  # noqa: BLE001 - the log has it
            _LOG.exception("a request of %s failed", route)
            await answered.fail(scope, receive, failed())
        finally:
            self._metrics.requests.labels(route, str(answered.status or 499)).inc()
            self._metrics.seconds.labels(route).observe(perf_counter() - start)

    async def _handle(self, scope: Scope, receive: Receive, send: "_Answered") -> None:
        headers = {name: value for name, value in scope["headers"]}
        self._check_host(headers.get(b"host", b""))
        path = scope["path"]
        if self._key is not None and path.startswith(_WITH_KEY):
            self._check_key(headers.get(b"authorization", b""))
        if not path.startswith(_LIMITED):
            await self._app(scope, _Replay(b"", receive), send)
            return
        if self._in_progress >= self._settings.max_queue:
            raise busy(f"{self._in_progress} requests are in progress.")
        self._in_progress += 1
        self._metrics.in_progress.set(self._in_progress)
        body = bytearray()
        try:
            seconds = self._settings.timeout_s
            try:
                async with asyncio.timeout(seconds) as limit:
                    await self._read(headers, receive, body)
                    replay = _Replay(bytes(body), receive)
                    if path == _STREAMS:  # has a time-out of its own
                        limit.reschedule(None)
                    await self._app(scope, replay, send)
            except TimeoutError:
                raise timed_out(seconds) from None
        finally:
            self._body_bytes -= len(body)
            self._in_progress -= 1
            self._metrics.in_progress.set(self._in_progress)

    async def _read(self, headers: dict[bytes, bytes], receive: Receive, body: bytearray) -> None:
        largest = self._settings.max_body_mib << 20
        refused = too_large(f"the body has more than {self._settings.max_body_mib} MiB.")
        stated = headers.get(b"content-length", b"0")
        if not stated.isdigit() or len(stated) > 12 or int(stated) > largest:
            raise refused
        more = True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise Problem(400, "the client left.")
            chunk = message.get("body", b"")
            if len(body) + len(chunk) > largest:
                raise refused
            if self._body_bytes + len(chunk) > _BODIES_IN_MEMORY * largest:
                raise busy("the bodies of all requests exceed the server's memory.")
            body += chunk
            self._body_bytes += len(chunk)
            more = message.get("more_body", False)

    def _check_key(self, given: bytes) -> None:
        scheme, _, value = given.partition(b" ")
        if scheme.lower() != b"bearer" or not hmac.compare_digest(value.strip(), self._key or b""):
            detail = "this server needs a key: send the header `Authorization: Bearer KEY`."
            raise Problem(401, detail, {"WWW-Authenticate": "Bearer"})

    def _check_host(self, given: bytes) -> None:
        """Refuse names of other hosts, by which a page of another site could reach a local server."""
        name = given.decode("latin-1")
        name = name.partition("]")[0].removeprefix("[") if name.startswith("[") else name.partition(":")[0]
        if self._hosts and name.lower() not in self._hosts:
            raise Problem(421, "this server does not answer to this host name: see --allowed-hosts.")


class _Answered:
    """A `Send` that knows whether the answer began."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status: int | None = None

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", []), (b"x-content-type-options", b"nosniff")]
        await self._send(message)

    async def fail(self, scope: Scope, receive: Receive, problem: Problem) -> None:
        """Answer with a problem, unless an answer began."""
        if self.status is None:
            answer = JSONResponse({"detail": problem.detail}, problem.status, dict(problem.headers))
            await answer(scope, receive, self)


class _Replay:
    """A `Receive` that gives a body that was read before, then waits for the client to leave."""

    def __init__(self, body: bytes, receive: Receive) -> None:
        self._message: dict[str, Any] | None = {"type": "http.request", "body": body, "more_body": False}
        self._receive = receive

    async def __call__(self) -> Message:
        message, self._message = self._message, None
        return await self._receive() if message is None else message
