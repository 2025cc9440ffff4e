import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from pipeline.cli import _sections, app
from pipeline.core import params
from pipeline.core.config import Config, read_params
from pipeline.core.errors import InputError
from pipeline.core.params import DEFAULT, FILE, Origin, Section
from pipeline.stages import STAGES

ROOT = Path(__file__).parents[2]


class Inner(Config):
    depth: int = 1
    """How deep."""
    width: int = 2


class Outer(Config):
    inner: Inner = Inner()
    name: str | None = None
    students: list[str] = []


PARTS = [Section("one", Outer, ("students",)), Section("many.*", Inner)]
VALUES = {"students": ["a"], "one": {"inner": {"depth": 3}}, "many": {"a": {}, "b": {"width": 5}}}


def test_every_value_has_its_origin():
    assert params.resolve(PARTS, VALUES) == {
        "students": Origin(["a"], FILE),
        "one": {"inner": {"depth": Origin(3, FILE), "width": Origin(2, DEFAULT)}, "name": Origin(None, DEFAULT)},
        "many": {
            "a": {"depth": Origin(1, DEFAULT), "width": Origin(2, DEFAULT)},
            "b": {"depth": Origin(1, DEFAULT), "width": Origin(5, FILE)},
        },
    }


def test_the_text_is_yaml_with_origins_as_comments():
    text = params.as_text(params.resolve(PARTS, VALUES))
    assert yaml.safe_load(text)["one"] == {"inner": {"depth": 3, "width": 2}, "name": None}
    assert "depth: 3 # params.yaml" in text
    assert "name: null # default" in text


def test_json_has_value_and_origin():
    shown = json.loads(params.as_json(params.resolve(PARTS, VALUES)))
    assert shown["many"]["b"]["width"] == {"value": 5, "origin": "params.yaml"}


def test_the_sections_of_students_that_are_not_listed_are_checked_too():
    with pytest.raises(InputError, match=r"section 'many\.b': unknown key 'hight'.*; available: depth, width"):
        params.check(PARTS, VALUES | {"many": {"a": {}, "b": {"hight": 1}}})
    params.check(PARTS, VALUES)


def test_the_schema_describes_each_key_by_its_docstring():
    schema = json.loads(params.schema(PARTS))
    assert schema["$defs"]["Inner"]["properties"]["depth"]["description"] == "How deep."
    assert "students" not in schema["$defs"]["Outer"]["properties"]
    assert schema["properties"]["many"]["additionalProperties"] == {"$ref": "#/$defs/Inner"}


def test_the_committed_schema_is_current():
    assert (ROOT / "presets/schema.json").read_text() == params.schema(_sections()) + "\n", "run `make schema`"


@pytest.mark.parametrize("path", sorted((ROOT / "presets").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_section_of_a_preset_resolves(path):
    resolved = params.resolve(_sections(), read_params(path))
    assert set(resolved) == set(read_params(path))


def test_the_command_prints_what_the_stages_see(monkeypatch):
    monkeypatch.chdir(ROOT)
    result = CliRunner().invoke(app, ["params"])
    assert result.exit_code == 0, (result.output, result.exception)
    shown = yaml.safe_load(result.output)
    assert shown["export"] == {"opset": 18, "max_difference": 0.001}
    assert shown["promote"]["prefer"] == "latency_ms"


@pytest.mark.parametrize(
    "change",
    [
        {"students": "x" * 50_000},
        {"distill": "x" * 50_000},
        {"distill": {"tinysam_nano": {"recipe": {"kind": "é" * 50_000}}}},
        {"prepare": {"y" * 50_000: 1}},
    ],
    ids=["students", "a section", "a tag", "a key"],
)
def test_a_long_value_does_not_fill_the_line(change):
    values = read_params(ROOT / "presets" / "demo.yaml") | change
    parts = params.sections(STAGES)
    with pytest.raises(InputError) as refused:
        params.check(parts, values)
    assert len(str(refused.value)) < 3000
