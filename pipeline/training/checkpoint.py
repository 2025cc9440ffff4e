"""Training checkpoints, from which an interrupted run resumes with bit-identical results.

A checkpoint holds weights, optimizer state, averaged weights, the fp16 gradient scale, and the number of completed
steps. Everything else follows from that number: the learning rate, the position in the data, and every random
generator, each seeded by the run's seed and the step. The file name contains a digest of everything that decides the
result, so a run never resumes from another run's state.
"""

import hashlib
import pickle
import struct
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch

from pipeline.core import atomic
from pipeline.core.errors import InputError
from pipeline.core.progress import notice
from pipeline.core.untrusted.regular_file import opened

CHECKPOINTS = Path(".checkpoints")
"""Directory of checkpoints; tracked by neither git nor DVC."""
_DAMAGED = (pickle.UnpicklingError, struct.error, RuntimeError, ValueError, LookupError, TypeError, EOFError)


@runtime_checkable
class Stateful(Protocol):
    """Anything with a state dict: a module, an optimizer, a gradient scaler."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state."""

    def load_state_dict(self, state_dict: dict[str, Any], /) -> Any:
        """Load a state."""


def checkpoint_of(name: str, *identity: object) -> Path:
    """Path of a run's checkpoint, named by a digest of everything that decides its result (``identity``)."""
    return CHECKPOINTS / f"{name}-{_digest(map(str, identity))[:16]}.pt"


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def warn_of_others(path: Path) -> None:
    """Print a notice if a new run ignores checkpoints of interrupted runs with the same name."""
    others = sorted(path.parent.glob(f"{path.stem.rpartition('-')[0]}-{'[0-9a-f]' * 16}.pt"))
    if others and not path.exists():
        notice(
            f"{path.stem.rpartition('-')[0]} starts from scratch: the checkpoint of an interrupted run with other "
            f"parameters, inputs or code is not used ({', '.join(map(str, others))}). Restore those settings to resume "
            "it, or delete the file."
        )


def save(path: Path, done: int, parts: Mapping[str, Stateful]) -> None:
    """Save the state after ``done`` steps, replacing an earlier checkpoint atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    state = {"done": done} | {name: part.state_dict() for name, part in parts.items()}
    # Given a path, torch does not report a full disk.
    with atomic.replacing(path, fsync=True) as draft, draft.open("wb") as stream:
        torch.save(state, stream)


def restore(path: Path, parts: Mapping[str, Stateful]) -> int:
    """Load a checkpoint into ``parts``. A partial file of a killed `save` is removed.

    Returns:
        The number of completed steps; 0 if there is no checkpoint.

    Raises:
        InputError: The file is damaged or from another version.
    """
    atomic.draft_of(path).unlink(missing_ok=True)
    if not path.exists():
        return 0
    try:
        with opened(path) as stream:
            state = torch.load(stream, map_location="cpu", weights_only=True)
        for name, part in parts.items():
            part.load_state_dict(state[name])
        return int(state["done"])
    except _DAMAGED as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(
            f"the checkpoint {path} of an interrupted run cannot be read ({reason}): delete it to start from scratch."
        ) from None
