"""One thing to be timed, and one kind of such things."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from pipeline.bench.settings import Combination, Settings
from pipeline.evaluate.timing import Clock, wall


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A row before it is measured."""

    name: str
    runtime: str
    precision: str
    call: Callable[[], object]
    clock: Clock = wall
    batch: int
    """Images or prompts in one call."""
    divide: bool = False
    """Whether times are per element of the batch rather than per call."""
    parameters: int
    gmacs: float
    """Multiply-accumulates per image or prompt, in 10^9."""
    size_mib: float | None
    """Of the engine's file; in PyTorch, what the weights take."""
    group: str = ""
    """Candidates of one group are compared; its first is their baseline."""
    figures: Callable[[float], Mapping[str, float]] = lambda median_ms: {}
    """More columns, read off after the measurement; gets the median of a call."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What can be measured, of a student or without one."""

    says: str
    unit: str
    """What one time is for, in words."""
    refuses: Callable[[str, str], str | None]
    """Why a runtime and precision cannot be measured; None where they can."""
    build: Callable[[Settings, str, Sequence[Combination], Path, ExitStack], list[Candidate]]
    """Candidates of one student in an empty directory; the stack closes what they need."""
    of_students: bool = True
    """Whether ``build`` is called for each student; if not, once, with no name."""
    paired: bool = False
    """Whether each combination brings a baseline of its own; if not, PyTorch in fp32 is measured for the first."""
    reference: Callable[[Sequence[str]], str] | None = None
    """The teacher that the students are compared with; without one, it is the first student."""
