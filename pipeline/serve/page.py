"""The page at ``/``: its files, and pictures to try."""

import io
from collections.abc import Callable, Mapping
from functools import lru_cache
from importlib.resources import files
from types import MappingProxyType
from typing import Any

import numpy as np
from fastapi import FastAPI
from fastapi.responses import JSONResponse, Response
from PIL import Image

from pipeline.core.errors import InputError
from pipeline.data.sample_photographs import CREDITS, LICENSE, path_of
from pipeline.data.scenes import render
from pipeline.serve.problems import Problem

_KINDS = MappingProxyType(
    {
        ".html": "text/html; charset=utf-8",
        ".css": "text/css; charset=utf-8",
        ".js": "text/javascript; charset=utf-8",
        ".svg": "image/svg+xml",
    }
)
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob:; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
_HEADERS: Mapping[str, str] = MappingProxyType(
    {"Content-Security-Policy": _POLICY, "Cache-Control": "no-cache", "Referrer-Policy": "no-referrer"}
)
_SCENE, _SCENE_SEED, _SCENE_SIDE = "scene.png", 7, 640


def page(app: FastAPI) -> None:
    """Add the page's routes, which need no key."""
    static = {path.name: path.read_bytes() for path in (files("pipeline.serve") / "static").iterdir() if path.is_file()}
    samples = _samples()

    def served(name: str) -> Response:
        kind = _KINDS.get(name[name.rfind(".") :])
        if name not in static or kind is None:
            raise Problem(404, "there is no such file.")
        return Response(static[name], media_type=kind, headers=dict(_HEADERS))

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return served("index.html")

    @app.get("/static/{name}", include_in_schema=False)
    async def file(name: str) -> Response:
        return served(name)

    @app.get("/samples", include_in_schema=False)
    async def names() -> Response:
        return JSONResponse([described for described, _ in samples.values()])

    @app.get("/samples/{name}", include_in_schema=False)
    def sample(name: str) -> Response:
        if name not in samples:
            raise Problem(404, "there is no such picture.")
        kind = "image/png" if name.endswith(".png") else "image/jpeg"
        return Response(samples[name][1](), media_type=kind, headers={"Cache-Control": "max-age=3600"})


def _samples() -> dict[str, tuple[dict[str, Any], Callable[[], bytes]]]:
    """Pictures by name: what the page says of each, and what gives its bytes."""
    scene = {"name": _SCENE, "title": "A rendered scene", "url": f"samples/{_SCENE}"}
    described: dict[str, tuple[dict[str, Any], Callable[[], bytes]]] = {_SCENE: (scene, _scene)}
    for name, credit in CREDITS.items():
        try:
            path = path_of(name)
        except InputError:  # scikit-learn is not installed
            continue
        about = {"name": name, "title": f"Photograph {name}", "credit": f"{credit}, {LICENSE}"}
        described[name] = (about | {"url": f"samples/{name}"}, path.read_bytes)
    return described


@lru_cache(maxsize=1)
def _scene() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(render(np.random.default_rng(_SCENE_SEED), _SCENE_SIDE).image).save(stream, "PNG")
    return stream.getvalue()
