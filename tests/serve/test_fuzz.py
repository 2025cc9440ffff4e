"""Requests made of the interface's own schema, then damaged: a declared status, JSON, and no traceback."""

import json
import string

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.serve.conftest import png

PATHS = ("/v1/embed", "/v1/predict", "/v1/everything")
EXAMPLES = settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True
)

numbers = st.one_of(
    st.integers(-(10**400), 10**400),
    st.floats(),
    st.sampled_from([0, -1, 1e308, 1_000_001, 2**63, float("nan"), float("inf")]),
)
anything = st.recursive(
    st.none() | st.booleans() | numbers | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


def values(schema, whole):
    """Values of a JSON schema, and now and then of none."""
    return st.one_of(_valid(schema, whole), _valid(schema, whole), _valid(schema, whole), anything)


def _valid(schema, whole):
    if "$ref" in schema:
        return _valid(whole["components"]["schemas"][schema["$ref"].rpartition("/")[2]], whole)
    if "anyOf" in schema:
        return st.one_of(*(values(part, whole) for part in schema["anyOf"]))
    if "enum" in schema:
        return st.sampled_from(schema["enum"])
    kind = schema.get("type")
    if kind == "object":
        required = {name: values(schema["properties"][name], whole) for name in schema.get("required", ())}
        optional = {name: values(part, whole) for name, part in schema["properties"].items() if name not in required}
        return st.fixed_dictionaries(required, optional=optional)
    if kind == "array":
        if "prefixItems" in schema:
            return st.tuples(*(values(part, whole) for part in schema["prefixItems"])).map(list)
        return st.lists(values(schema["items"], whole), max_size=5)
    if kind == "string":
        return st.text(string.hexdigits + "+/=", max_size=70) | st.just("0" * 64) | st.just("../../etc/passwd\x00")
    return {"number": numbers, "integer": numbers, "boolean": st.booleans()}.get(kind, st.none())


@pytest.fixture
def prepared(client_of):
    client = client_of()
    image_id = client.post("/v1/embed", content=png(), headers={"Content-Type": "image/png"}).json()["image_id"]
    return client, client.get("/openapi.json").json(), image_id


def check(answer, path, schema):
    declared = schema["paths"][path]["post"]["responses"]
    assert str(answer.status_code) in declared, answer.text
    if answer.status_code != 200:
        assert set(answer.json()) == {"detail"}
        assert "Traceback" not in answer.text
        assert 'File "' not in answer.text


@pytest.mark.parametrize("path", PATHS)
def test_requests_of_the_schema_get_a_declared_answer(prepared, path):
    client, schema, image_id = prepared
    body = schema["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]

    @EXAMPLES
    @given(values(body, schema), st.booleans())
    def ask(request, known):
        if known and isinstance(request, dict):
            request = {k: v for k, v in request.items() if k != "image"} | {"image_id": image_id}
            if path.endswith("everything"):
                request["points_per_side"] = 1
        content = json.dumps(request).encode("utf-8", "surrogatepass")
        check(client.post(path, content=content, headers={"Content-Type": "application/json"}), path, schema)

    ask()
    assert client.get("/healthz").status_code == 200


@pytest.mark.parametrize("path", PATHS)
def test_bytes_get_a_declared_answer(prepared, path):
    client, schema, _ = prepared
    image = png()
    kinds = st.sampled_from(["application/json", "image/png", "image/tiff", "", "text/plain", "multipart/form-data"])

    @EXAMPLES
    @given(kinds, st.binary(max_size=60), st.integers(0, len(image)), st.booleans())
    def ask(kind, extra, cut, of_image):
        content = image[:cut] + extra + image[cut + len(extra) :] if of_image else extra
        check(client.post(path, content=content, headers={"Content-Type": kind}), path, schema)

    ask()


@EXAMPLES
@given(st.text(string.printable, max_size=40))
def test_paths_lead_to_no_file(client, path):
    from urllib.parse import quote

    for prefix in ("/", "/static/", "/v1/embed/", "/../../"):
        answer = client.get(prefix + quote(path, safe="/."))
        assert answer.status_code in (200, 404, 405, 307), answer.text
        assert "root:" not in answer.text
