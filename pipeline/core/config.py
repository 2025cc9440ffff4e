"""params.yaml as types: each stage's section is a Config beside the function that uses it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from pipeline.core.errors import InputError

PARAMS = Path("params.yaml")

RENAMED = {"taps": "feature_layers"}
"""Keys of earlier versions, and what they are called now."""

ConfigT = TypeVar("ConfigT", bound="Config")


class Config(BaseModel):
    """Base of all sections: unknown keys, wrong types and late changes are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


def read_params(path: Path = PARAMS) -> dict[str, Any]:
    """Read params.yaml.

    Raises:
        InputError: The file is absent, is not YAML, or is not a mapping.
    """
    try:
        params = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise InputError(f"{path} does not exist: run `python -m pipeline preset demo`.") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(params, dict):
        raise InputError(f"{path} must hold sections, not {type(params).__name__}: see presets/demo.yaml.")
    return params


def find(params: Mapping[str, Any], dotted: str, file: Path = PARAMS) -> Any:
    """What params.yaml holds at ``dotted``, for example ``distill.efficientvit_sam_nano``.

    Raises:
        InputError: There is no such section or key.
    """
    node: Any = params
    for part in dotted.split("."):
        if not isinstance(node, Mapping) or part not in node:
            known = ", ".join(sorted(map(str, node))) if isinstance(node, Mapping) else "nothing"
            raise InputError(f"{file} has no section {dotted!r}: {part!r} is missing; there is {known}.")
        node = node[part]
    return node


def section(
    params: Mapping[str, Any],
    dotted: str,
    model: type[ConfigT],
    file: Path = PARAMS,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> ConfigT:
    """Check one section of params.yaml against its type.

    Args:
        params: The whole file.
        dotted: Where the section is, for example ``distill.efficientvit_sam_nano``.
        model: What it must look like.
        file: Named in errors.
        more: What the type has beside the section's keys.

    Raises:
        InputError: The section is absent, or a key is unknown, absent or of a wrong type.
    """
    node = find(params, dotted, file)
    if isinstance(node, Mapping) and (twice := sorted(more.keys() & node.keys())):
        raise InputError(f"{file}, section {dotted!r}: {twice[0]!r} stands at the top of the file; remove it here.")
    try:
        return model.model_validate({**node, **more} if isinstance(node, Mapping) else node)
    except ValidationError as error:
        raise InputError(f"{file}, section {dotted!r}: {_say(error, model)}") from None


def _say(error: ValidationError, model: type[Config]) -> str:
    """All faults of a section in one line, each with its key."""
    faults = []
    for fault in error.errors():
        key = ".".join(str(part) for part in fault["loc"])
        if fault["type"] == "extra_forbidden":
            renamed = RENAMED.get(str(fault["loc"][-1]))
            known = ", ".join(_keys(model, fault["loc"][:-1]))
            remedy = f"it is {renamed!r} now" if renamed else "remove it or correct its spelling"
            remedy += f"; there is {known}" if known and not renamed else ""
            faults.append(f"unknown key {key!r}: {remedy}")
        elif fault["type"] == "missing":
            faults.append(f"key {key!r} is missing")
        else:
            faults.append(f"key {key!r} is {fault['input']!r}: {fault['msg']}")
    return "; ".join(faults) + "."


def _keys(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """The keys of the section at a fault's location; a tagged union's location names its tag, too."""
    types: list[Any] = [model]
    for name in location:
        fields = [kind.model_fields[name].annotation for kind in types if name in kind.model_fields]
        if fields:
            types = [kind for field in fields for kind in _models(field)]
        else:  # the tag of a union
            types = [kind for kind in types if name in get_args(kind.model_fields.get("kind", FieldInfo()).annotation)]
    return sorted({key for kind in types for key in kind.model_fields})


def _models(annotation: Any) -> list[type[BaseModel]]:
    """The models in a field's annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]
