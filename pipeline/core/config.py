"""Typed access to params.yaml: each stage declares its section as a `Config` beside its function."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo

from pipeline.core.checkout import checkout_above
from pipeline.core.errors import InputError
from pipeline.core.untrusted import yaml_file
from pipeline.core.untrusted.json_file import shown
from pipeline.core.untrusted.regular_file import MissingFileError

PARAMS = Path("params.yaml")

_SETS = "validation: {NAME: {annotations, images}}"
RENAMED = {"taps": "feature_layers", "validation_annotations": _SETS, "validation_folder": _SETS}
"""Keys of earlier versions and their current names."""

_LONGEST = 300
"""Characters of a key or of pydantic's message in an error; both may repeat a value of the file."""

ConfigT = TypeVar("ConfigT", bound="Config")


class Config(BaseModel):
    """Base of all sections: frozen; unknown keys and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


def read_params(path: Path = PARAMS) -> dict[str, Any]:
    """Read params.yaml.

    Raises:
        InputError: The file is missing, is not YAML within the bounds of `yaml_file`, or is not a mapping.
    """
    try:
        params = yaml_file.load(path, remedy="Correct it, or run `python -m pipeline preset demo`.")
    except MissingFileError:
        checkout = checkout_above()
        remedy = f"change to the checkout, `cd {checkout}`" if checkout else "run `python -m pipeline preset demo`"
        raise InputError(f"{path} does not exist in {Path.cwd()}: {remedy}.") from None
    if not isinstance(params, dict):
        raise InputError(f"{path} must hold sections, not {type(params).__name__}: see presets/demo.yaml.")
    return params


def find(params: Mapping[str, Any], dotted: str, file: Path = PARAMS) -> Any:
    """Return the value at a dotted key, for example ``distill.efficientvit_sam_nano``.

    Raises:
        InputError: The section or key does not exist.
    """
    node: Any = params
    for part in dotted.split("."):
        if not isinstance(node, Mapping) or part not in node:
            available = ", ".join(sorted(map(str, node))) if isinstance(node, Mapping) else "nothing"
            raise InputError(f"{file} has no section {dotted!r}: {part!r} is missing; available: {available}.")
        node = node[part]
    return node


def section(
    params: Mapping[str, Any],
    dotted: str,
    model: type[ConfigT],
    file: Path = PARAMS,
    more: Mapping[str, Any] = MappingProxyType({}),
) -> ConfigT:
    """Validate one section of params.yaml.

    Args:
        params: The whole file.
        dotted: Dotted key of the section, for example ``distill.efficientvit_sam_nano``.
        model: Type of the section.
        file: Path named in errors.
        more: Fields of ``model`` that are set at the top level of the file.

    Raises:
        InputError: The section is missing, or a key is unknown, missing or of the wrong type.
    """
    node = find(params, dotted, file)
    if isinstance(node, Mapping) and (duplicates := sorted(more.keys() & node.keys())):
        raise InputError(f"{file}, section {dotted!r}: {duplicates[0]!r} is set at the top level; remove it here.")
    try:
        return model.model_validate({**node, **more} if isinstance(node, Mapping) else node)
    except ValidationError as error:
        raise InputError(f"{file}, section {dotted!r}: {_message(error, model)}") from None


def _message(error: ValidationError, model: type[Config]) -> str:
    """Format all errors of a section in one line, each with its key."""
    faults = []
    for fault in error.errors():
        key = ".".join(str(part) for part in fault["loc"])[:_LONGEST]
        if fault["type"] == "extra_forbidden":
            renamed = RENAMED.get(str(fault["loc"][-1]))
            available = ", ".join(_keys(model, fault["loc"][:-1]))
            remedy = f"it was renamed to {renamed!r}" if renamed else "remove it or correct its spelling"
            remedy += f"; available: {available}" if available and not renamed else ""
            faults.append(f"unknown key {key!r}: {remedy}")
        elif fault["type"] == "missing":
            faults.append(f"key {key!r} is missing")
        else:
            faults.append(f"key {key!r} is {shown(fault['input'])}: {fault['msg'][:_LONGEST]}")
    return "; ".join(faults) + "."


def _keys(model: type[BaseModel], location: Sequence[int | str]) -> list[str]:
    """List the keys of the section at an error's location, which includes the tags of tagged unions."""
    types: list[Any] = [model]
    for name in location:
        fields = [kind.model_fields[name].annotation for kind in types if name in kind.model_fields]
        if fields:
            types = [kind for field in fields for kind in _models(field)]
        else:  # the tag of a union
            types = [kind for kind in types if name in get_args(kind.model_fields.get("kind", FieldInfo()).annotation)]
    return sorted({key for kind in types for key in kind.model_fields})


def _models(annotation: Any) -> list[type[BaseModel]]:
    """List the pydantic models in a field's annotation."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in _models(argument)]
