"""Progress of long work: a bar at a terminal, a line now and then in a log."""

import io
import sys
from collections.abc import Iterable
from typing import IO, Any, Never, TypeVar

from tqdm import tqdm

ItemT = TypeVar("ItemT")

_LINE_EVERY_S = 20.0
_LINE = "{desc}: {n_fmt} of {total_fmt}{unit}s, {rate_fmt}, {remaining} to go{postfix}"


class _Lines:
    """Turns what tqdm writes over one line into lines of their own."""

    def __init__(self, stream: IO[str] | io.TextIOBase) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        line = text.strip("\r\n ")
        return self._stream.write(f"{line}\n") if line else 0

    def flush(self) -> None:
        self._stream.flush()


def progress(
    work: Iterable[ItemT], what: str, unit: str, *, total: int | None = None, done: int = 0, hidden: bool = False
) -> "tqdm[ItemT]":
    """Go through ``work`` and show on standard error how far it has come.

    Args:
        work: What is gone through.
        what: Shown in front.
        unit: One piece of the work, singular.
        total: How many there are; needed where ``work`` does not tell.
        done: How many were done before.
        hidden: Show nothing, as another process does.
    """
    return tqdm(work, what, total, unit=f" {unit}", initial=done, disable=hidden, **_manner())


def counter(what: str, unit: str, total: int | None, *, scale: bool = False) -> "tqdm[Never]":
    """The same for work that is counted by hand, with ``update``; ``scale`` shows large numbers as k, M, G."""
    return tqdm(None, what, total, unit=f" {unit}", unit_scale=scale, **_manner())


def notice(text: str) -> None:
    """Say something that a person should know, on a line of its own beside any bar."""
    tqdm.write(text, file=sys.stderr)


def _manner() -> dict[str, Any]:
    if sys.stderr.isatty():
        return {"mininterval": 0.5}
    every = {"mininterval": _LINE_EVERY_S, "maxinterval": _LINE_EVERY_S, "delay": _LINE_EVERY_S}
    return {**every, "bar_format": _LINE, "file": _Lines(sys.stderr), "leave": False}
