"""A fresh nano student, and a server of it in this process."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from starlette.testclient import TestClient

from pipeline.core.artifact import Card, Contents
from pipeline.data.scenes import render
from pipeline.models import build
from pipeline.models.sam import save_checkpoint
from pipeline.serve.app import build as build_app
from pipeline.serve.model import Model
from pipeline.serve.service import Service
from pipeline.serve.settings import ServeSettings
from pipeline.serve.source import Artifact

NANO = "efficientvit_sam_nano"


def checkpoint(directory: Path, seed: int = 1) -> Path:
    directory.mkdir()
    save_checkpoint(build(NANO, seed=seed), directory)
    Card.seal(directory, Contents(kind="checkpoint", model=NANO, precision="fp32"), {})
    return directory


def png(side: int = 96, seed: int = 0, form: str = "PNG") -> bytes:
    stream = io.BytesIO()
    Image.fromarray(render(np.random.default_rng(seed), side).image).save(stream, form)
    return stream.getvalue()


@pytest.fixture(scope="session")
def artifact(tmp_path_factory) -> Path:
    return checkpoint(tmp_path_factory.mktemp("serve") / "nano")


@pytest.fixture(scope="session")
def model(artifact) -> Model:
    return Model.fetch(Artifact(artifact), "", None, 1)


@pytest.fixture
def service_of(model, artifact):
    """Makes a service with settings of its own."""
    return lambda **settings: Service(model, Artifact(artifact), ServeSettings(threads=1, **settings))


@pytest.fixture
def client_of(service_of):
    """Makes a client of a server with settings of its own; both end with the test."""
    opened = []

    def make(key=None, hosts=(), **settings):
        service = service_of(**settings)
        client = TestClient(build_app(service, key, hosts), base_url="http://localhost", raise_server_exceptions=False)
        client.service = service
        opened.append(client)
        return client.__enter__()

    yield make
    for client in opened:
        client.__exit__(None, None, None)


@pytest.fixture
def client(client_of):
    return client_of()
