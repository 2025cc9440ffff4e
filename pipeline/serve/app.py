"""The HTTP interface."""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, Response
from pydantic import ValidationError
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException

from pipeline import __version__
from pipeline.core.untrusted.json_file import fault_of, shown
from pipeline.serve import images, metrics
from pipeline.serve.everything import Everything
from pipeline.serve.limits import Limits
from pipeline.serve.page import page
from pipeline.serve.problems import Problem, failed, invalid
from pipeline.serve.schemas import (
    EmbedRequest,
    EmbedResponse,
    Error,
    EverythingLine,
    EverythingRequest,
    PredictRequest,
    PredictResponse,
    Served,
)
from pipeline.serve.service import Service

_REF = "#/components/schemas/{model}"
_IMAGES = ("image/jpeg", "image/png", "image/bmp", "image/webp", "image/tiff", "image/gif", "application/octet-stream")
_PROBLEMS: Mapping[int, str] = {
    400: "The body is not JSON.",
    401: "The key is missing or wrong.",
    404: "No image of this id is in memory.",
    413: "The body or the image exceeds a limit.",
    415: "The content type is not supported.",
    422: "The request is invalid.",
    429: "Too many requests are in progress.",
    503: "The answer took too long.",
}


def build(service: Service, key: str | None = None, hosts: tuple[str, ...] = ()) -> Limits:
    """The server as an ASGI application.

    Args:
        service: Answers the requests.
        key: Key that requests must send; None for none.
        hosts: Accepted names in the Host header; empty for all.
    """

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with service.running():
            yield

    # FastAPI's own pages of documentation load scripts of other hosts.
    app = FastAPI(title="SAM Distillery", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    _model_routes(app, service)
    _health_routes(app, service)
    page(app)
    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    app.add_exception_handler(Problem, _problem)
    app.add_exception_handler(RequestValidationError, _validation)
    app.add_exception_handler(HTTPException, _http)
    app.add_exception_handler(Exception, _fault)
    return Limits(app, service.settings, service.metrics, key, hosts)


def _answers(model: Any, *statuses: int) -> dict[int | str, dict[str, Any]]:
    problems: dict[int | str, dict[str, Any]] = {
        s: {"model": Error, "description": _PROBLEMS[s]} for s in (401, 429, *statuses)
    }
    return {200: {"model": model}, **problems}


def _model_routes(app: FastAPI, service: Service) -> None:
    everything = Everything(service)

    @app.post(
        "/v1/embed",
        responses=_answers(EmbedResponse, 400, 413, 415, 422, 503),
        openapi_extra={"requestBody": _embed_body()},
    )
    async def embed(request: Request) -> Response:
        """Encode an image and keep its embedding in memory. The body is the image file, or JSON with it in base64."""
        embedded = await service.embed(None, await _image(request, service))
        entry = embedded.entry
        stored = service.store.get(entry.image_id) is not None
        answer = {"image_id": entry.image_id, "size": entry.size, "stored": stored}
        return JSONResponse(answer | {"model": embedded.model.described()})

    @app.post("/v1/predict", responses=_answers(PredictResponse, 400, 404, 413, 422, 503))
    async def predict(request: PredictRequest) -> Response:
        """Masks for points, boxes and earlier masks on one image."""
        answer, seconds = await service.predict(request)
        timing = ", ".join(f"{name};dur={1000 * value:.2f}" for name, value in seconds.items())
        return JSONResponse(answer, headers={"Server-Timing": timing})

    @app.post("/v1/everything", responses=_answers(EverythingLine, 400, 404, 413, 422, 503))
    async def all_masks(request: EverythingRequest) -> Response:
        """Masks of everything in an image, as a stream of JSON lines."""
        return await everything.answer(request)

    @app.get("/v1/model", responses=_answers(Served))
    async def model() -> Response:
        """The model that is served now."""
        return JSONResponse(service.model.described())


def _health_routes(app: FastAPI, service: Service) -> None:
    @app.get("/healthz")
    async def healthz() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok"}

    @app.get("/readyz")
    async def readyz() -> dict[str, str]:
        """Whether a model is served that passed its self-check, and what that measured."""
        return {"status": "ready", "self_check": service.model.check}

    @app.get("/metrics", response_class=Response)
    async def figures() -> Response:
        """Figures for Prometheus."""
        return Response(service.metrics.text(), media_type=metrics.CONTENT_TYPE)


async def _image(request: Request, service: Service) -> bytes:
    """The image of a body: its bytes, or JSON with base64."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    body = await request.body()
    if kind in _IMAGES:
        return body
    if kind != "application/json":
        raise Problem(415, f"content type {shown(kind)} is not supported: send an image or application/json.")
    try:
        return await service.in_thread(images.from_base64, EmbedRequest.model_validate_json(body).image)
    except ValidationError as error:
        raise invalid(fault_of(error)) from None


def _embed_body() -> dict[str, Any]:
    binary = {"schema": {"type": "string", "format": "binary"}}
    content = {"application/json": {"schema": {"$ref": _REF.format(model="EmbedRequest")}}}
    return {"required": True, "content": content | dict.fromkeys(_IMAGES, binary)}


def _openapi(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
        _, extra = models_json_schema([(EmbedRequest, "validation")], ref_template=_REF)
        schema["components"]["schemas"] |= extra["$defs"]
        schema["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        schema["security"] = [{}, {"key": []}]
        app.openapi_schema = schema
    return app.openapi_schema


async def _problem(request: Request, error: Exception) -> Response:
    assert isinstance(error, Problem)
    return JSONResponse({"detail": error.detail}, error.status, dict(error.headers))


async def _http(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return JSONResponse({"detail": str(error.detail)}, error.status_code, error.headers)


async def _fault(request: Request, error: Exception) -> Response:
    """Starlette raises the error again, and `Limits` logs it."""
    return await _problem(request, failed())


async def _validation(request: Request, error: Exception) -> Response:
    """422 in one line, or 400 for what is not JSON."""
    assert isinstance(error, RequestValidationError)
    fault = error.errors()[0]
    if fault["type"] == "json_invalid":
        return JSONResponse({"detail": "the body is not JSON."}, 400)
    where = ".".join(str(part) for part in fault["loc"][1:]) or "the body"
    what = fault["msg"].removeprefix("Value error, ")
    given = "" if fault["type"] == "value_error" else f", not {shown(fault.get('input'))}"
    return JSONResponse({"detail": f"{where}: {what}{given}."}, 422)
