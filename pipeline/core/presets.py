"""Make a preset the active params.yaml, with some of its values changed on the way.

Only the texts of the named values are replaced, so comments and layout of the preset stay.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from pipeline.core.config import PARAMS, read_params
from pipeline.core.errors import InputError

PRESETS = Path("presets")
KEPT = Path("params.yaml.before")


def activate(name: str, changes: Sequence[str] = ()) -> str:
    """Write ``presets/<name>.yaml`` to params.yaml, with ``changes`` (``section.key=value``) in it.

    Returns:
        What was done, in one line.

    Raises:
        InputError: There is no such preset or key, or a value is of another type than the preset's.
    """
    source = PRESETS / f"{name}.yaml"
    if not source.is_file():
        known = ", ".join(sorted(path.stem for path in PRESETS.glob("*.yaml"))) or "none"
        raise InputError(f"{source} does not exist; there is {known}.")
    read_params(source)
    text = source.read_text()
    for change in changes:
        key, equals, value = change.partition("=")
        if not equals:
            raise InputError(f"{change!r} is not KEY=VALUE, for example build_engine.engine=onnxruntime.")
        text = _replace(text, key.strip(), value, source)
    kept = _keep_own(text)
    draft = PARAMS.with_name(f".{PARAMS.name}.part")
    draft.write_text(text)
    draft.replace(PARAMS)
    return f"{PARAMS} is now {source}" + (f" with {', '.join(changes)}" if changes else "") + kept


def _keep_own(text: str) -> str:
    """Keep a params.yaml that somebody edited, and say so; presets can be had again."""
    if not PARAMS.is_file() or PARAMS.read_text() in (text, *(path.read_text() for path in PRESETS.glob("*.yaml"))):
        return ""
    PARAMS.replace(KEPT)
    return f"; what it was is in {KEPT}"


def _replace(text: str, dotted: str, value: str, source: Path) -> str:
    """``text`` with the value at ``dotted`` replaced."""
    node = _node(yaml.compose(text, Loader=yaml.SafeLoader), dotted, source)
    if isinstance(node, yaml.MappingNode):
        keys = ", ".join(str(key.value) for key, _ in node.value)
        raise InputError(f"{dotted!r} in {source} is a section: name one of its keys ({keys}).")
    before = yaml.safe_load(text)
    new = _typed(value, _at(before, dotted), dotted, source)
    written = yaml.safe_dump(new, default_flow_style=True, width=10**6).removesuffix("\n").removesuffix("\n...")
    # A block's end mark is the start of whatever follows it.
    end = "\n" if isinstance(node, yaml.CollectionNode) and not node.flow_style else ""
    after = text[: node.start_mark.index] + written + end + text[node.end_mark.index :]
    wanted = _unshared(before)
    _at(wanted, dotted.rpartition(".")[0])[dotted.rpartition(".")[2]] = new
    if yaml.safe_load(after) != wanted:
        raise InputError(f"{dotted!r} in {source} is shared by a YAML anchor: edit {PARAMS} by hand.")
    return after


def _node(root: yaml.Node | None, dotted: str, source: Path) -> yaml.Node:
    node = root
    for part in dotted.split("."):
        entries = {str(k.value): v for k, v in node.value} if isinstance(node, yaml.MappingNode) else {}
        if part not in entries:
            known = ", ".join(sorted(entries)) or "nothing"
            raise InputError(f"unknown key {dotted!r}: {source} has no {part!r} there; it has {known}.")
        node = entries[part]
    assert node is not None
    return node


def _at(params: Any, dotted: str) -> Any:
    for part in filter(None, dotted.split(".")):
        params = params[part]
    return params


def _unshared(params: Any) -> Any:
    """A copy in which what an anchor shared is shared no more."""
    if isinstance(params, dict):
        return {key: _unshared(value) for key, value in params.items()}
    return [_unshared(value) for value in params] if isinstance(params, list) else params


def _typed(value: str, old: object, dotted: str, source: Path) -> object:
    """``value`` read as YAML, and of the type of ``old``."""
    try:
        new: Any = yaml.safe_load(value)
        if isinstance(old, float) and not isinstance(new, bool):
            new = float(new)  # also 1e-4, which YAML 1.1 takes for text
    except (yaml.YAMLError, TypeError, ValueError):
        new = None
    if old is not None and (new is None or type(new) is not type(old)):
        raise InputError(
            f"{dotted!r} cannot be {value!r}: {source} has {old!r} there, so a {type(old).__name__} is expected."
        )
    return new
