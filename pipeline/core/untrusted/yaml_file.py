"""YAML of bounded size, depth and numbers, without what YAML 1.1 reads as something else than it looks like.

Refused beside what is not YAML: duplicate keys, keys that are not text, tags other than those of JSON's types, aliases
that contain themselves, numbers that are not finite or exceed 64 bits, sexagesimal numbers (``1:30`` is 90) and octal
ones (``010`` is 8).
"""

import math
import re
from pathlib import Path
from typing import Any

import yaml

from pipeline.core.errors import InputError
from pipeline.core.untrusted.json_file import LARGEST_INTEGER
from pipeline.core.untrusted.regular_file import read_text

LARGEST = 1_000_000
"""Bytes of a file."""
DEEPEST = 32
"""Levels of nested lists and mappings."""
MOST_VALUES = 20_000
"""Lists, mappings, keys and values, with those that aliases repeat."""

_TAG = "tag:yaml.org,2002:"
_TAGS = frozenset(_TAG + name for name in ("map", "seq", "str", "int", "float", "bool", "null", "merge"))
_LONGEST_NUMBER = 100
_OCTAL = re.compile(r"[-+]?0[0-7_]+")


def load(path: Path, *, remedy: str = "Correct it.") -> Any:
    """Read a YAML file.

    Raises:
        MissingFileError: There is no such file.
        InputError: It is not a regular file, is too large, or is not YAML within the bounds.
    """
    return parse(read_text(path, LARGEST, remedy=remedy), str(path), remedy=remedy)


def parse(text: str, name: str, *, remedy: str = "Correct it.") -> Any:
    """`load` for a text; ``name`` names it in errors.

    Raises:
        InputError: It is not YAML within the bounds.
    """
    loader = None
    try:
        loader = _Loader(text)
        return loader.get_single_data()
    except (yaml.YAMLError, ValueError, LookupError, AttributeError, TypeError, RecursionError) as error:
        raise InputError(f"{name} is not valid YAML: {' '.join(str(error).split())}. {remedy}") from None
    finally:
        if loader is not None:
            loader.dispose()


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader with the bounds of this module."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = 0
        self._nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self._depth += 1
        self._nodes += 1
        if self._depth > DEEPEST:
            raise yaml.YAMLError(f"it is nested more than {DEEPEST} levels deep")
        if self._nodes > MOST_VALUES:
            raise yaml.YAMLError(f"it has more than {MOST_VALUES} values")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def get_single_node(self) -> yaml.Node | None:
        node = super().get_single_node()
        if node is not None:
            _check_aliases(node, {}, set())
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        if node.tag not in _TAGS:
            raise _fault(node, f"the tag {node.tag!r:.60} is not text, number, boolean, null, list or mapping")
        return super().construct_object(node, deep)

    def construct_mapping(self, node: yaml.Node, deep: bool = False) -> dict[Any, Any]:
        if not isinstance(node, yaml.MappingNode):
            raise _fault(node, "it is tagged as a mapping, but is none")
        keys = set[str]()
        for key, _ in node.value:
            if key.tag == f"{_TAG}merge":
                continue
            if key.tag != f"{_TAG}str":
                raise _fault(key, f"the key {_shown(key)} is not text: put it in quotes")
            if key.value in keys:
                raise _fault(key, f"the key {_shown(key)} occurs twice: remove one")
            keys.add(key.value)
        return super().construct_mapping(node, deep)

    def construct_yaml_int(self, node: yaml.Node) -> int:
        number = _checked_number(node)
        if _OCTAL.fullmatch(node.value):
            raise _fault(node, f"{node.value!r} is octal in YAML 1.1: remove the leading 0, or quote it if it is text")
        value: int = super().construct_yaml_int(number)
        if not -LARGEST_INTEGER - 1 <= value <= LARGEST_INTEGER:
            raise _fault(node, f"{_shown(node)} does not fit into 64 bits")
        return value

    def construct_yaml_float(self, node: yaml.Node) -> float:
        number = _checked_number(node)
        value: float = super().construct_yaml_float(number)
        if not math.isfinite(value):
            raise _fault(node, f"{node.value!r} is not a finite number: give one, or quote it if it is text")
        return value


_Loader.add_constructor(f"{_TAG}int", _Loader.construct_yaml_int)
_Loader.add_constructor(f"{_TAG}float", _Loader.construct_yaml_float)


def _checked_number(node: yaml.Node) -> yaml.ScalarNode:
    if not isinstance(node, yaml.ScalarNode):
        raise _fault(node, "it is tagged as a number, but is none")
    if len(node.value) > _LONGEST_NUMBER:
        raise _fault(node, f"{_shown(node)} has more than {_LONGEST_NUMBER} digits")
    if ":" in node.value:
        raise _fault(node, f"{node.value!r} is a number to base 60 in YAML 1.1: put it in quotes if it is text")
    return node


def _check_aliases(node: yaml.Node, sizes: dict[int, int], above: set[int]) -> int:
    """Number of values below a node, each alias counted in full; refuses too many, and aliases around themselves."""
    if id(node) in sizes:
        return sizes[id(node)]
    if id(node) in above or len(above) >= DEEPEST:
        raise _fault(node, f"aliases nest it more than {DEEPEST} levels deep, or in itself")
    parts: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        parts = [part for pair in node.value for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        parts = node.value
    above.add(id(node))
    size = 1 + sum(_check_aliases(part, sizes, above) for part in parts)
    above.remove(id(node))
    if size > MOST_VALUES:
        raise _fault(node, f"aliases expand it to more than {MOST_VALUES} values")
    sizes[id(node)] = size
    return size


def _shown(node: yaml.Node) -> str:
    text = repr(node.value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _fault(node: yaml.Node, what: str) -> yaml.YAMLError:
    mark = node.start_mark
    return yaml.YAMLError(f"line {mark.line + 1}: {what}" if mark else what)
