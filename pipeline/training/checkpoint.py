"""What a killed run needs to go on as if nothing had happened, on the disk.

Weights, optimizer, averaged weights, the scale of fp16 gradients, and the number of steps done. The rest follows from
that number: the learning rate, the position in the data, and every random generator, each seeded by the run's seed and
the step. The file's name holds a digest of all that decides the result, so nothing else is ever continued.
"""

import hashlib
import os
import pickle
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from pipeline.core.errors import InputError
from pipeline.core.progress import notice

CHECKPOINTS = Path(".checkpoints")
"""Where interrupted runs wait to be continued; known to neither git nor DVC."""
_DAMAGED = (pickle.UnpicklingError, struct.error, RuntimeError, ValueError, LookupError, TypeError, EOFError)


@runtime_checkable
class Stateful(Protocol):
    """What has a state that can be kept: a module, an optimizer, a gradient scaler."""

    def state_dict(self) -> dict[str, Any]:
        """The state."""

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Take a state over."""


def checkpoint_of(name: str, *identity: object) -> Path:
    """The checkpoint of a run, by everything that decides its result: another recipe or input never continues it."""
    return CHECKPOINTS / f"{name}-{_digest(map(str, identity))[:16]}.pt"


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def tell_of_others(path: Path) -> None:
    """Say that there are interrupted runs of the same name which this one, beginning anew, does not continue."""
    others = sorted(path.parent.glob(f"{path.stem.rpartition('-')[0]}-{'[0-9a-f]' * 16}.pt"))
    if others and not path.exists():
        notice(
            f"{path.stem.rpartition('-')[0]} starts anew: an interrupted run of other parameters, inputs or code is in "
            f"{', '.join(map(str, others))} and is not used. With what it was started with it goes on; else remove it."
        )


def save(path: Path, done: int, parts: Mapping[str, Stateful]) -> None:
    """Keep the state after ``done`` steps; an earlier one is there until this one is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".part")
    state = {"done": done} | {name: part.state_dict() for name, part in parts.items()}
    try:
        with draft.open("wb") as stream:  # handed only a path, torch would not say that the disk is full
            torch.save(state, stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(draft, path)
    finally:
        draft.unlink(missing_ok=True)


def restore(path: Path, parts: Mapping[str, Stateful]) -> int:
    """Take over what `save` kept; gives the number of steps done, 0 where there is no file.

    What a process that was killed while it saved has left is removed.

    Raises:
        InputError: The file is damaged or another version's.
    """
    path.with_suffix(".part").unlink(missing_ok=True)
    if not path.exists():
        return 0
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        return int(state["done"])
    except _DAMAGED as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"{path}, where an interrupted run was to go on, cannot be used ({reason}): remove it to start anew."
        ) from None
