"""A new version is taken up while requests go on, and refused if it does not pass."""

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from pipeline.core.errors import InputError
from pipeline.serve.app import build
from pipeline.serve.model import Model
from pipeline.serve.service import Service
from pipeline.serve.settings import ServeSettings
from tests.serve.conftest import checkpoint, png

PROMPTS = [{"point_coords": [[40, 50]], "point_labels": [1]}]


@dataclass
class Versions:
    """A `Source` that a test moves."""

    directories: dict[str, Path]
    current: str
    fetched: list[str] = field(default_factory=list)

    def version(self) -> str:
        if self.current == "unreachable":
            raise InputError("no connection")
        return self.current

    def fetch(self, version: str, directory: Path) -> Path:
        self.fetched.append(version)
        return self.directories[version]


@pytest.fixture
def versions(artifact, tmp_path):
    damaged = checkpoint(tmp_path / "damaged", seed=3)
    (damaged / "model.safetensors").write_bytes(b"damaged")
    return Versions({"1": artifact, "2": checkpoint(tmp_path / "two", seed=2), "3": damaged}, "1")


def test_requests_go_on_while_the_model_changes(versions):
    service = Service(Model.fetch(versions, "1", None, 1), versions, ServeSettings(threads=1))

    async def run():
        app = build(service)
        transport = httpx.ASGITransport(app)
        async with service.running(), httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            answer = await client.post("/v1/embed", content=png(), headers={"Content-Type": "image/png"})
            image_id, answers, changed = answer.json()["image_id"], [], asyncio.Event()

            async def ask():
                while not (changed.is_set() and answers[-1].json()["model"]["version"] == "2"):
                    request = {"image_id": image_id, "prompts": PROMPTS}
                    answers.append(await client.post("/v1/predict", json=request))

            asking = [asyncio.create_task(ask()) for _ in range(4)]
            versions.current = "2"
            assert await service.update()
            changed.set()
            await asyncio.gather(*asking)
            versions.current = "3"
            assert not await service.update()
            assert not await service.update()
            versions.current = "unreachable"
            assert not await service.update()
            figures = (await client.get("/metrics")).text
            return answers, figures

    answers, figures = asyncio.run(run())
    assert {answer.status_code for answer in answers} == {200}
    seen = {answer.json()["model"]["version"]: answer.json()["masks"] for answer in answers}
    assert seen.keys() == {"1", "2"}
    assert seen["1"] != seen["2"]
    assert versions.fetched == ["1", "2", "3"]
    assert 'model_changes_total{result="taken"} 1.0' in figures
    assert 'model_changes_total{result="refused"} 1.0' in figures
    assert 'version="2"' in figures


def test_prompts_of_many_requests_share_a_model_call(service_of):
    service = service_of()
    calls = []
    decode = service.model.segmenter.decode

    class Counting:
        image_size, input_size = service.model.segmenter.image_size, service.model.segmenter.input_size
        embedding_size, encode = service.model.segmenter.embedding_size, service.model.segmenter.encode

        def decode(self, embedding, coords, labels, masks=None):
            calls.append(len(coords))
            return decode(embedding, coords, labels, masks)

    service.model = Model(Counting(), service.model.card, "", "")

    async def run():
        transport = httpx.ASGITransport(build(service))
        async with service.running(), httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            answer = await client.post("/v1/embed", content=png(), headers={"Content-Type": "image/png"})
            request = {"image_id": answer.json()["image_id"], "prompts": PROMPTS}
            return await asyncio.gather(*(client.post("/v1/predict", json=request) for _ in range(20)))

    answers = asyncio.run(run())
    assert {answer.status_code for answer in answers} == {200}
    assert sum(calls) == 20
    assert len(calls) < 10
    assert max(calls) <= 16
