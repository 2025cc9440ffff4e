"""What is asked of a comparison."""

from dataclasses import dataclass
from pathlib import Path

from pipeline.core.errors import InputError

CUDA = ("cuda", "cuda_compile", "cuda_graph")
"""PyTorch on a GPU: eager, through torch.compile, and as a recorded CUDA graph."""
RUNTIMES = ("torch", "onnxruntime", "openvino", *CUDA)
"""All but `CUDA` on the processor."""
PRECISIONS = ("fp32", "bf16", "fp16", "int8")

Combination = tuple[str, str]
"""Runtime and precision."""


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What to compare, and how carefully."""

    students: tuple[str, ...]
    runtimes: tuple[str, ...]
    precisions: tuple[str, ...]
    threads: int
    """Processor threads that one call may use."""
    runs: int
    """Samples of each row."""
    warmup: int
    """Calls of each row before its first sample."""
    rounds: int
    """Turns in which the samples of a row are taken."""
    max_foreign_load: float
    """Share of the processors that other processes may use while a sample is taken."""
    prompts: tuple[int, ...]
    """Boxes per call of the decoder; each number has a row."""
    batches: tuple[int, ...]
    """Images per call of the encoder, each number with a row; none: 1, and 16 too on a GPU."""
    images: int
    """Images per step of training; images that evaluation goes through."""
    photographs: Path | None
    """Directory with ``instances.json`` and ``images`` to evaluate on; None draws scenes."""
    tokens: tuple[int, ...]
    """Lengths of the sequences that attention is measured on."""
    steps: int
    """Steps of training at one go, in which memory and waiting are watched."""
    points: int
    """Points along one side of the grid of everything mode."""
    weights: Path | None
    """Directory that holds a checkpoint artifact under each student's name; None takes fresh weights."""

    def check(self) -> None:
        """Refuse what measures nothing.

        Raises:
            InputError: One is out of its range, or a list is empty.
        """
        for flag, names in (
            ("--students", self.students),
            ("--runtimes", self.runtimes),
            ("--precisions", self.precisions),
        ):
            if not names:
                raise InputError(f"{flag} names nothing: give names between commas.")
        for flag, value, least in (
            ("--threads", self.threads, 1),
            ("--runs", self.runs, 1),
            ("--warmup", self.warmup, 0),
            ("--rounds", self.rounds, 1),
            ("--prompts", min(self.prompts, default=0), 1),
            ("--batches", min(self.batches, default=1), 1),
            ("--images", self.images, 1),
            ("--steps", self.steps, 1),
            ("--points", self.points, 1),
            ("--tokens", min(self.tokens, default=0), 1),
        ):
            if value < least:
                raise InputError(f"{flag} must be at least {least}, not {value}.")
        if not 0 <= self.max_foreign_load <= 1:
            raise InputError(f"--max-foreign-load must lie in [0, 1], not {self.max_foreign_load:g}.")
