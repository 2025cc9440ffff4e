"""Seeded damage to values and bytes, shared by the generators of all kinds."""

import copy
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from numpy.random import Generator

VALUES = (
    None, True, False, 0, -1, 1, 2**31, 2**31 - 1, 2**32, 2**53, 2**63, 2**63 - 1, 2**64, -(2**63), 10**30, 10**400,
    0.5, -0.0, 1e30, 1e308, float("nan"), float("inf"), -float("inf"), "", "a", "\0", "\ud800", "é" * 50, "x" * 5000,
    [], {}, [[]], [None], [True] * 6, [1e30] * 6, [0] * 6, {"a": 1}, {"size": [1, 1], "counts": "1"},
    {"size": [2**31, 2**31], "counts": [2**62]}, [[1, 2, 3, 4]], [[0, 0, 1e9, 1e9, 5, 5]], "PPYo1", 16384, 16385, 1e6,
)  # fmt: skip
_WORDS = (b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\x80\0\0\0")


@dataclass(frozen=True)
class Case:
    """A hostile input: ``run`` reads it in an empty folder; ``invalid`` if acceptance would be a fault."""

    run: Callable[[Path], object]
    invalid: bool = False


def pick(rng: Generator, options: Any) -> Any:
    """One of a sequence, without a conversion to NumPy's types."""
    return options[int(rng.integers(len(options)))]


def mutate(rng: Generator, value: Any) -> Any:
    """A copy of a JSON value with one to three parts replaced, removed or added."""
    value = copy.deepcopy(value)
    for _ in range(pick(rng, (1, 1, 1, 2, 3))):
        path = pick(rng, list(_paths(value)))
        new = _nested(rng) if rng.random() < 0.05 else copy.deepcopy(pick(rng, VALUES))
        if not path:
            value = new if rng.random() < 0.1 else value
            continue
        parent, action = _at(value, path[:-1]), rng.random()
        if action > 0.9 and isinstance(parent, dict):
            del parent[path[-1]]
        elif action > 0.85 and isinstance(parent, list):
            parent.append(new)
        else:
            parent[path[-1]] = new
    return value


def replaced(value: Any, path: tuple[str | int, ...], new: Any) -> Any:
    """A copy of a JSON value with the part at ``path`` replaced."""
    value = copy.deepcopy(value)
    _at(value, path[:-1])[path[-1]] = new
    return value


def damage(rng: Generator, raw: bytes) -> bytes:
    """A copy of bytes with some overwritten, removed, inserted or cut off."""
    data = bytearray(raw)
    for _ in range(pick(rng, (1, 1, 2, 5, 20))):
        if not data:
            break
        i = int(rng.integers(len(data) if rng.random() < 0.6 else min(len(data), 512)))
        action = rng.random()
        if action < 0.5:
            data[i] = int(rng.integers(256))
        elif action < 0.6:
            del data[i : i + int(rng.integers(1, 40))]
        elif action < 0.7:
            data[i:i] = rng.bytes(int(rng.integers(1, 40)))
        elif action < 0.8:
            del data[i:]
        elif action < 0.9:
            data[i : i + 4] = pick(rng, _WORDS)
        else:
            data[i : i + 8] = data[int(rng.integers(len(data))) :][:8]
    return bytes(data)


def as_json(rng: Generator, value: Any) -> bytes:
    """JSON of a value; one in ten is damaged."""
    raw = json.dumps(value).encode()
    return damage(rng, raw) if rng.random() < 0.1 else raw


def written(folder: Path, name: str, raw: bytes) -> Path:
    """Write a file and return its path."""
    path = folder / name
    path.write_bytes(raw)
    return path


def _nested(rng: Generator) -> Any:
    value: Any = []
    objects = rng.random() < 0.5
    for _ in range(pick(rng, (10, 70, 300))):
        value = {"a": value} if objects else [value]
    return value


def _paths(value: Any, path: tuple[str | int, ...] = ()) -> Any:
    yield path
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, part in parts:
        yield from _paths(part, (*path, key))


def _at(value: Any, path: tuple[str | int, ...]) -> Any:
    for key in path:
        value = value[key]
    return value
