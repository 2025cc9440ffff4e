"""Throughput of the server: `bench serve`.

A server and its clients run in this process, which favours neither side of a comparison. In each turn `CLIENTS` clients
send `REQUESTS` requests each, one box per request, over connections that stay open. The baseline sends an image that
the server has not seen with every request; the others send the id of one image, with and without micro-batching.
"""

import asyncio
import base64
import http.client
import io
import json
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from itertools import count
from pathlib import Path

import numpy as np
import uvicorn
from PIL import Image

from pipeline.bench.candidate import Candidate, Subject
from pipeline.bench.decoder import macs_per_prompt, ours
from pipeline.bench.engines import Exported, files_mib, model, refuses_decoding, weights_mib
from pipeline.bench.settings import Combination, Settings
from pipeline.core.artifact import Card
from pipeline.data.scenes import render
from pipeline.models.cost import count_parameters, macs
from pipeline.runtime import Segmenter, load
from pipeline.serve.app import build as build_app
from pipeline.serve.model import Model
from pipeline.serve.server import listening
from pipeline.serve.service import Service
from pipeline.serve.settings import ServeSettings
from pipeline.serve.source import Artifact

CLIENTS, REQUESTS = 16, 4
IMAGE_PX = 512
_BOX = [100, 120, 340, 400]


def _build(
    settings: Settings, student: str, combinations: Sequence[Combination], directory: Path, stack: ExitStack
) -> list[Candidate]:
    sam = model(settings, student)
    encoder, prompt = macs(sam)["encoder"], macs_per_prompt(sam, ours, 1)
    exported = Exported(sam, student, combinations, directory)
    candidates = list[Candidate]()
    for runtime, precision in combinations:
        if runtime == "torch":
            segmenter, size_mib = load(sam, threads=settings.threads), weights_mib(sam)
        else:
            segmenter, files = exported.engine(runtime, precision, settings.threads)
            size_mib = sum(files_mib(files, part) for part in ("encoder", "decoder"))
        card = Card(kind="engine", model=student, precision=precision, digest="0" * 64, parents={})
        batched, unbatched = (stack.enter_context(_server(segmenter, card, most)) for most in (16, 1))
        ways = {
            "image each time": (_requests(batched, None), encoder + prompt),
            "kept embedding, unbatched": (_requests(unbatched, _embed(unbatched)), prompt),
            "kept embedding": (_requests(batched, _embed(batched)), prompt),
        }
        candidates += [
            Candidate(
                name=f"{student} {way}",
                runtime=runtime,
                precision=precision,
                call=call,
                batch=CLIENTS * REQUESTS,
                divide=True,
                parameters=count_parameters(sam),
                gmacs=cost / 1e9,
                size_mib=size_mib,
                group=f"{student} {runtime} {precision}",
            )
            for way, (call, cost) in ways.items()
        ]
    return candidates


@contextmanager
def _server(segmenter: Segmenter, card: Card, max_batch: int) -> Iterator[int]:
    """Run a server in a thread; gives its port."""
    settings = ServeSettings(port=0, max_batch=max_batch)
    with listening(settings) as listener:
        service = Service(Model(segmenter, card, "", "not checked"), Artifact(Path()), settings)
        app = build_app(service)
        config = uvicorn.Config(app, log_level="error", access_log=False, timeout_keep_alive=3600)  # others take turns
        server = uvicorn.Server(config)
        thread = threading.Thread(target=asyncio.run, args=[server.serve([listener])], daemon=True)
        thread.start()
        yield int(listener.getsockname()[1])
        server.should_exit = True
        thread.join()


def _requests(port: int, image_id: str | None) -> Callable[[], object]:
    """A call that sends the requests of all clients and waits for the answers."""
    clients, numbers = ThreadPoolExecutor(CLIENTS), count()
    connections = [http.client.HTTPConnection("127.0.0.1", port, timeout=600) for _ in range(CLIENTS)]
    image = _image()

    def client(connection: http.client.HTTPConnection) -> None:
        for _ in range(REQUESTS):
            if image_id is None:  # other bytes after the image make it another image
                content = base64.b64encode(image + next(numbers).to_bytes(8, "big")).decode()
                request = {"image": content, "prompts": [{"box": _BOX}]}
            else:
                request = {"image_id": image_id, "prompts": [{"box": _BOX}]}
            _post(connection, "/v1/predict", json.dumps(request).encode(), "application/json")

    return lambda: list(clients.map(client, connections))


def _embed(port: int) -> str:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    return str(json.loads(_post(connection, "/v1/embed", _image(), "image/jpeg"))["image_id"])


def _post(connection: http.client.HTTPConnection, path: str, body: bytes, kind: str) -> bytes:
    connection.request("POST", path, body, {"Content-Type": kind})
    answer = connection.getresponse()
    data = answer.read()
    if answer.status != 200:
        raise RuntimeError(f"{path} answered {answer.status}: {data[:200]!r}")
    return data


def _image() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(render(np.random.default_rng(0), IMAGE_PX).image).save(stream, "JPEG", quality=90)
    return stream.getvalue()


SUBJECT = Subject(
    says=f"one request of {CLIENTS} clients that ask at once, each with one box",
    unit="ms per request",
    refuses=refuses_decoding,
    build=_build,
    paired=True,
)
