"""All of params.yaml as the stages see it: resolved, checked, and as a JSON schema."""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any, NamedTuple

from pydantic.json_schema import models_json_schema
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq

from pipeline.core.config import Config, find, section
from pipeline.core.errors import InputError
from pipeline.core.stage import Stage, listed, top_level
from pipeline.core.untrusted.json_file import shown

FILE, DEFAULT = "params.yaml", "default"
_LISTS = ("students", "precisions")


class Section(NamedTuple):
    """A section of params.yaml; ``name`` may end in ``.*``: one section for each student."""

    name: str
    model: type[Config]
    lists: tuple[str, ...] = ()
    """Lists at the top of the file that the model gets, too."""
    sections: tuple[str, ...] = ()
    """Other sections that the model gets, too."""
    optional: bool = False
    """Whether the section may be null."""


class Origin(NamedTuple):
    """A resolved value, and whether it is written in params.yaml or a default."""

    value: Any
    origin: str


def sections(stages: Sequence[Stage], others: Iterable[Section] = ()) -> list[Section]:
    """The sections the stages read, each once, and ``others``."""
    own = (
        Section(
            (stage.section or stage.name).replace("{student}", "*"),
            stage.config_type,
            stage.lists,
            stage.sections,
            stage.optional,
        )
        for stage in stages
    )
    return list({part.name: part for part in (*own, *others)}.values())


def check(parts: Sequence[Section], params: Mapping[str, Any]) -> None:
    """Check sections, those of students that are not listed included.

    Raises:
        InputError: A key is unknown or absent, or a value is wrong.
    """
    for part in parts:
        for dotted in _dotted(part, params):
            if not _is_null(part, dotted, params):
                _read(part, dotted, params)


def resolve(parts: Sequence[Section], params: Mapping[str, Any]) -> dict[str, Any]:
    """Every value with its `Origin`, nested as in params.yaml.

    Raises:
        InputError: As `check`.
    """
    resolved: dict[str, Any] = {name: Origin(listed(params, name), FILE) for name in _LISTS if name in params}
    for part in parts:
        for dotted in _dotted(part, params):
            *above, last = dotted.split(".")
            target = resolved
            for name in above:
                target = target.setdefault(name, {})
            if _is_null(part, dotted, params):
                target[last] = Origin(None, FILE)
                continue
            values = _read(part, dotted, params).model_dump(mode="json", exclude={*part.lists, *part.sections})
            target[last] = _with_origin(values, find(params, dotted))
    return resolved


def as_text(resolved: Mapping[str, Any]) -> str:
    """YAML with each value's origin as a comment."""
    stream = StringIO()
    editor = YAML()
    editor.width = 4096
    editor.representer.add_representer(type(None), lambda r, _: r.represent_scalar("tag:yaml.org,2002:null", "null"))
    editor.dump(_commented(resolved), stream)
    return stream.getvalue().rstrip("\n")


def as_json(resolved: Mapping[str, Any]) -> str:
    """An object for each value: ``{"value": ..., "origin": ...}``."""

    def plain(node: Any) -> Any:
        return node._asdict() if isinstance(node, Origin) else {key: plain(value) for key, value in node.items()}

    return json.dumps(plain(resolved), indent=1)


def schema(parts: Sequence[Section]) -> str:
    """The JSON schema of params.yaml, for editors."""
    models = list(dict.fromkeys(part.model for part in parts))
    references, definitions = models_json_schema([(model, "validation") for model in models])
    for part in parts:
        own = definitions["$defs"][part.model.__name__]
        for name in (*part.lists, *part.sections):
            own["properties"].pop(name, None)
        own["required"] = [name for name in own.get("required", ()) if name not in part.lists]
    names = {"type": "array", "items": {"type": "string"}}
    properties: dict[str, Any] = dict.fromkeys(_LISTS, names)
    for part in parts:
        name, _, each = part.name.partition(".")
        reference: dict[str, Any] = references[part.model, "validation"]
        if part.optional:
            reference = {"anyOf": [reference, {"type": "null"}]}
        properties[name] = {"type": "object", "additionalProperties": reference} if each else reference
    whole = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": "params.yaml",
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
        **definitions,
    }
    return json.dumps(whole, indent=1)


def _dotted(part: Section, params: Mapping[str, Any]) -> Iterator[str]:
    name, _, each = part.name.partition(".")
    if not each:
        yield name
        return
    students = find(params, name)
    if not isinstance(students, Mapping):
        raise InputError(f"{FILE}, section {name!r} must have an entry for each student, not {shown(students)}.")
    yield from (f"{name}.{student}" for student in students)


def _is_null(part: Section, dotted: str, params: Mapping[str, Any]) -> bool:
    return part.optional and find(params, dotted) is None


def _read(part: Section, dotted: str, params: Mapping[str, Any]) -> Config:
    return section(params, dotted, part.model, Path(FILE), more=top_level(params, part.lists, part.sections))


def _with_origin(values: Any, written: Any) -> Any:
    if isinstance(values, Mapping) and values:
        own = written if isinstance(written, Mapping) else {}
        return {key: _with_origin(value, own[key]) if key in own else _default(value) for key, value in values.items()}
    return Origin(values, FILE)


def _default(values: Any) -> Any:
    if isinstance(values, Mapping) and values:
        return {key: _default(value) for key, value in values.items()}
    return Origin(values, DEFAULT)


def _commented(node: Mapping[str, Any]) -> CommentedMap:
    commented = CommentedMap()
    for key, value in node.items():
        if isinstance(value, Origin):
            commented[key] = _in_one_line(value.value)
            commented.yaml_add_eol_comment(value.origin, key, column=0)
        else:
            commented[key] = _commented(value)
    return commented


def _in_one_line(value: Any) -> Any:
    if isinstance(value, list | dict):
        flow = CommentedSeq(map(_in_one_line, value)) if isinstance(value, list) else CommentedMap(value)
        flow.fa.set_flow_style()
        return flow
    return value
