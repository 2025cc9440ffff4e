"""What is timed: a candidate is one row, a subject a kind of candidates."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from pipeline.bench.settings import Combination, Settings
from pipeline.evaluate.timing import Clock, wall


@dataclass(frozen=True, kw_only=True)
class Candidate:
    """A row that is not measured yet."""

    name: str
    runtime: str
    precision: str
    call: Callable[[], object]
    clock: Clock = wall
    batch: int
    """Images or prompts per call."""
    divide: bool = False
    """Whether times are per element of the batch rather than per call."""
    parameters: int
    gmacs: float
    """Multiply-accumulates per image or prompt, in 10^9."""
    size_mib: float | None
    """Size of the engine's file, or of the weights in PyTorch."""
    group: str = ""
    """Group of compared candidates; the first is the baseline."""
    figures: Callable[[float], Mapping[str, float]] = lambda median_ms: {}
    """Additional columns, computed after the measurement from the median of a call in ms."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A kind of measurement, of students or without one."""

    says: str
    unit: str
    """Unit of the measured times, in words."""
    refuses: Callable[[str, str], str | None]
    """Reason why a runtime and precision cannot be measured; None if they can."""
    build: Callable[[Settings, str, Sequence[Combination], Path, ExitStack], list[Candidate]]
    """Build the candidates of one student in an empty directory; the stack closes their resources."""
    of_students: bool = True
    """Whether ``build`` is called per student; if not, it is called once, without a name."""
    paired: bool = False
    """Whether each combination has its own baseline; if not, the first student is also measured in PyTorch fp32."""
    reference: Callable[[Sequence[str]], str] | None = None
    """Teacher that is the baseline of the students; without one, the baseline is the first student."""
