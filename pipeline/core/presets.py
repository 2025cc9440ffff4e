"""Make a preset the active params.yaml, with values changed on the way.

The preset is edited by ruamel.yaml's round trip, so that its comments and layout stay.
"""

import copy
import math
import sysconfig
from collections.abc import Callable, Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap

from pipeline.core import atomic
from pipeline.core.checkout import checkout_above
from pipeline.core.config import PARAMS, read_params
from pipeline.core.errors import InputError
from pipeline.core.untrusted import yaml_file
from pipeline.core.untrusted.json_file import shown
from pipeline.core.untrusted.regular_file import read_text

PRESETS = Path("presets")
KEPT = Path("params.yaml.before")

Check = Callable[[Mapping[str, Any], set[str]], None]
"""Raises `InputError` where one of the named top-level sections is wrong."""


def activate(name: str, changes: Sequence[str] = (), check: Check = lambda params, names: None) -> str:
    """Write ``presets/<name>.yaml`` with ``changes`` (``section.key=value``) to params.yaml.

    Args:
        name: File name without suffix.
        changes: Any key that its section's Config has, also one the preset leaves to its default.
        check: Called with the changed parameters and the top-level sections that changed.

    Returns:
        What was done, in one line.

    Raises:
        InputError: There is no such preset, a change is not ``key=value``, or `check` refuses it.
    """
    if checkout := checkout_above():
        raise InputError(f"{Path.cwd()} is a subdirectory of a checkout: change to it, `cd {checkout}`.")
    source, known = folder() / f"{name}.yaml", sorted(path.stem for path in folder().glob("*.yaml"))
    if name not in known:
        raise InputError(f"{source} does not exist; there is {', '.join(known) or 'none'}.")
    read_params(source)
    text = read_text(source, yaml_file.LARGEST)
    if changes:
        text = _changed(text, changes)
        check(
            yaml_file.parse(text, str(source)),
            {change.partition("=")[0].strip().partition(".")[0] for change in changes},
        )
    kept = _keep_own(text)
    with atomic.replacing(PARAMS) as draft:
        draft.write_text(text)
    return f"{PARAMS} is now {source}" + (f" with {', '.join(changes)}" if changes else "") + kept


def folder() -> Path:
    """The checkout's presets; outside of one, those that were installed with the package."""
    installed = Path(sysconfig.get_path("data"), "share/sam-distillery/presets")
    return PRESETS if PRESETS.is_dir() or not installed.is_dir() else installed


def _keep_own(text: str) -> str:
    """Keep a params.yaml that somebody edited; an unedited preset can be made again."""
    if PARAMS.is_dir():
        raise InputError(f"{PARAMS} is a directory: remove it.")
    presets = (path.read_bytes() for path in folder().glob("*.yaml"))
    if not PARAMS.is_file() or PARAMS.read_bytes() in (text.encode(), *presets):
        return ""
    PARAMS.replace(KEPT)
    return f"; the file before it is {KEPT}"


def _changed(text: str, changes: Sequence[str]) -> str:
    editor = YAML()
    editor.preserve_quotes = True
    editor.width = 4096
    editor.indent(mapping=2, sequence=4, offset=2)
    editor.representer.add_representer(float, _represent_float)
    params = editor.load(text)
    for change in changes:
        dotted, equals, value = change.partition("=")
        if not equals:
            raise InputError(f"{change!r} is not KEY=VALUE, for example build_engine.engine=onnxruntime.")
        keys = dotted.strip().split(".")
        if len(keys) > yaml_file.DEEPEST:
            raise InputError(f"{shown(dotted)} is nested more than {yaml_file.DEEPEST} levels deep: name a known key.")
        _set(params, keys, value)
    stream = StringIO()
    editor.dump(params, stream)
    return stream.getvalue()


def _set(params: CommentedMap, keys: Sequence[str], value: str) -> None:
    """Set one value, in a copy of every section that a YAML alias shares with others."""
    section = params
    for key in keys[:-1]:
        below = section.get(key)
        if not isinstance(below, CommentedMap):
            below = CommentedMap()
        elif below.anchor.value is not None:
            below = copy.deepcopy(below)
            below.anchor.value = None
        section[key] = below
        section = below
    section[keys[-1]] = _read(value, ".".join(keys))


def _read(text: str, dotted: str) -> Any:
    """``text`` as YAML, where 1e-4 is a number too: YAML 1.1 reads it as text."""
    value = yaml_file.parse(text, f"the value of {dotted!r}")
    if isinstance(value, str):
        try:
            number = float(value)
        except ValueError:
            return value
        return number if math.isfinite(number) else value
    return value


def _represent_float(representer: Any, value: float) -> Any:
    """With a point in the mantissa, without which YAML 1.1 reads text."""
    text = repr(value)
    return representer.represent_scalar("tag:yaml.org,2002:float", text if "." in text else text.replace("e", ".0e"))
