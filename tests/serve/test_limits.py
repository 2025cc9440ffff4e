"""What is refused, with which status, and that the server goes on."""

import asyncio
import base64
import io
import struct
import threading
import zlib

import pytest
from PIL import Image

from pipeline.core.errors import InputError
from pipeline.serve.server import KEY_VARIABLE, serve
from pipeline.serve.settings import ServeSettings
from pipeline.serve.source import Artifact
from pipeline.serve.store import Entry, Store
from tests.serve.conftest import png

POINT = {"point_coords": [[40, 50]], "point_labels": [1]}
ID = "0" * 64


def embed(client, raw, kind="image/png", **headers):
    return client.post("/v1/embed", content=raw, headers={"Content-Type": kind, **headers})


def refused(answer, status, says):
    assert answer.status_code == status, answer.text
    detail = answer.json()["detail"]
    assert says in detail
    assert "\n" not in detail
    assert "Traceback" not in detail


def bomb(width, height):
    """A PNG that states a size without having the pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(100))) + chunk(b"IEND", b"")


def test_bodies_and_images_above_the_limits_are_413(client_of):
    client = client_of(max_body_mib=1, max_pixels=10_000)
    refused(embed(client, bytes((1 << 20) + 1)), 413, "1 MiB")
    refused(embed(client, iter([bytes(1 << 19)] * 3)), 413, "1 MiB")
    refused(embed(client, b"", **{"Content-Length": "9" * 40}), 413, "1 MiB")
    refused(embed(client, png(128)), 413, "scale it down")
    refused(embed(client, bomb(60_000, 60_000)), 422, "too many pixels")
    assert embed(client, png(96)).status_code == 200
    assert client.service.metrics.in_progress._value.get() == 0


@pytest.mark.parametrize(
    "raw", [b"", b"hello", png()[:200], bomb(50, 50), b"%!PS-Adobe-3.0 EPSF-3.0\n", b"<svg/>"], ids=range(6)
)
def test_what_is_no_image_is_422(client, raw):
    refused(embed(client, raw), 422, "image")


def test_other_content_types_are_415_and_other_bodies_400(client):
    refused(embed(client, png(), "text/plain"), 415, "send an image or application/json")
    refused(client.post("/v1/predict", content=b"{"), 422, "")
    json = {"Content-Type": "application/json"}
    refused(client.post("/v1/predict", content=b"{", headers=json), 400, "not JSON")
    refused(client.post("/v1/predict", content=b"[" * 100_000, headers=json), 400, "body")
    refused(client.post("/v1/embed", content=b"{", headers=json), 422, "JSON")


@pytest.mark.parametrize(
    ("request_", "says"),
    [
        ({"image_id": ID, "prompts": []}, "at least 1"),
        ({"image_id": "../../etc/passwd", "prompts": [POINT]}, "image_id"),
        ({"image_id": ID, "image": "aaaa", "prompts": [POINT]}, "either image_id or image"),
        ({"prompts": [POINT]}, "either image_id or image"),
        ({"image": "!!", "prompts": [POINT]}, "base64"),
        ({"image_id": ID, "prompts": [{}]}, "give point_coords"),
        ({"image_id": ID, "prompts": [{"point_coords": [[1, 2]]}]}, "1 points and point_labels 0"),
        ({"image_id": ID, "prompts": [{"point_coords": [[1, 2]], "point_labels": [2]}]}, "less than or equal to 1"),
        ({"image_id": ID, "prompts": [{"point_coords": [["1", 2]], "point_labels": [1]}]}, "valid number"),
        ({"image_id": ID, "prompts": [{"box": [5, 5, 1, 9]}]}, "ends before it begins"),
        ({"image_id": ID, "prompts": [{"box": [1e300, 5, 1e301, 9]}]}, "less than or equal to 1000000"),
        ({"image_id": ID, "prompts": [POINT], "secret": 1}, "Extra inputs"),
        ({"image_id": ID, "prompts": [POINT] * 5}, "more than 4"),
        ({"image_id": ID, "prompts": [{"point_coords": [[1, 2]] * 257, "point_labels": [1] * 257}]}, "at most 256"),
    ],
)
def test_invalid_requests_are_422(client_of, request_, says):
    refused(client_of(max_prompts=4).post("/v1/predict", json=request_), 422, says)


def test_nan_and_infinity_are_422(client):
    for value in (b"NaN", b"Infinity", b"1e999", b"1" * 400):
        body = b'{"image_id": "' + ID.encode() + b'", "prompts": [{"box": [0, 0, 1, ' + value + b"]}]}"
        refused(client.post("/v1/predict", content=body, headers={"Content-Type": "application/json"}), 422, "box")


def test_unknown_ids_are_404_and_masks_of_another_side_422(client):
    refused(client.post("/v1/predict", json={"image_id": ID, "prompts": [POINT]}), 404, "send the image again")
    refused(client.post("/v1/everything", json={"image_id": ID}), 404, "send the image again")
    image_id = embed(client, png()).json()["image_id"]
    for mask, says in (("AAAA", "3 bytes"), ("?", "base64"), (base64.b64encode(b"\x00\x7e" * 4096).decode(), "NaN")):
        request = {"image_id": image_id, "prompts": [{**POINT, "mask_input": mask}]}
        refused(client.post("/v1/predict", json=request), 422, says)


def test_requests_above_the_queue_are_429(client_of):
    client = client_of(max_queue=1)
    began, go_on = threading.Event(), threading.Event()

    async def slow(request):
        began.set()
        await asyncio.to_thread(go_on.wait, 30)
        return {}, {}

    client.service.predict = slow
    waiting = threading.Thread(
        target=client.post, args=["/v1/predict"], kwargs={"json": {"image_id": ID, "prompts": [POINT]}}
    )
    waiting.start()
    assert began.wait(30)
    answer = embed(client, png())
    refused(answer, 429, "in progress")
    assert answer.headers["retry-after"] == "1"
    assert client.get("/healthz").status_code == 200
    go_on.set()
    waiting.join()
    assert embed(client, png()).status_code == 200


def test_a_request_that_takes_too_long_is_503_and_a_fault_500_without_a_traceback(client_of):
    client = client_of(timeout_s=0.2)

    async def slow(request):
        await asyncio.sleep(30)

    async def broken(request):
        raise RuntimeError("secret of the server")

    request = {"image_id": ID, "prompts": [POINT]}
    client.service.predict = slow
    refused(client.post("/v1/predict", json=request), 503, "longer than 0.2 s")
    client.service.predict = broken
    answer = client.post("/v1/predict", json=request)
    refused(answer, 500, "log has the reason")
    assert "secret" not in answer.text


def test_a_key_protects_all_but_health_and_the_page(client_of):
    client = client_of(key="k" * 16)
    assert client.get("/healthz").status_code == client.get("/readyz").status_code == 200
    for headers in ({}, {"Authorization": "Bearer " + "x" * 16}, {"Authorization": "k" * 16}):
        answer = client.get("/v1/model", headers=headers)
        refused(answer, 401, "Authorization")
        assert client.get("/metrics", headers=headers).status_code == 401
    assert client.get("/v1/model", headers={"Authorization": "Bearer " + "k" * 16}).status_code == 200


def test_other_host_names_are_refused_where_names_are_given(client_of):
    client = client_of(hosts=("localhost",))
    assert client.get("/healthz").status_code == 200
    refused(client.get("/healthz", headers={"Host": "evil.example"}), 421, "--allowed-hosts")


def test_the_store_drops_the_least_recently_used_within_its_bytes():
    store = Store(10_000)
    for name in "abc":
        store.put(Entry(name, bytes(3000), (1, 1)))
        store.get("a")
    assert [store.get(name) is not None for name in "abc"] == [True, False, True]
    assert store.nbytes <= 10_000
    store.put(Entry("large", bytes(20_000), (1, 1)))
    assert store.get("large") is None
    assert len(store) == 2


def test_a_server_that_keeps_nothing_answers_by_image(client_of):
    client = client_of(keep_mib=0)
    assert embed(client, png()).json()["stored"] is False
    request = {"image": base64.b64encode(png()).decode(), "prompts": [POINT]}
    assert client.post("/v1/predict", json=request).status_code == 200


def test_an_image_is_turned_as_its_exif_says(client):
    stream, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (60, 40)).save(stream, "JPEG", exif=exif)
    assert embed(client, stream.getvalue(), "image/jpeg").json()["size"] == [60, 40]


@pytest.mark.parametrize(
    ("settings", "key", "says"),
    [
        ({"tls_certificate": "missing.pem"}, None, "go together"),
        ({"host": "256.1.1.1"}, None, "256.1.1.1"),
        ({}, "short", "at least 16"),
    ],
)
def test_a_server_that_cannot_start_says_why(artifact, monkeypatch, settings, key, says):
    from pathlib import Path

    if key:
        monkeypatch.setenv(KEY_VARIABLE, key)
    settings = {name: Path(value) if "tls" in name else value for name, value in settings.items()}
    with pytest.raises(InputError, match=says):
        serve(Artifact(artifact), ServeSettings(port=0, **settings))
