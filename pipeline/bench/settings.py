"""What `bench` measures, and how carefully. Each field is an option of the command line."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from pipeline.core.config import Config

CUDA = ("cuda", "cuda_compile", "cuda_graph")
"""PyTorch on a GPU: eager, through torch.compile, and as a recorded CUDA graph."""
RUNTIMES = ("torch", "onnxruntime", "openvino", *CUDA)
"""All but `CUDA` run on the processor."""
PRECISIONS = ("fp32", "bf16", "fp16", "int8")
SubjectName = Literal["attention", "encoder", "decoder", "training", "loading", "evaluate", "everything"]

Combination = tuple[str, str]
"""Runtime and precision."""
_Positive = Annotated[int, Field(ge=1)]


class Settings(Config):
    """Options of `bench`."""

    students: Annotated[tuple[str, ...], Field(min_length=1)] = ("efficientvit_sam_nano",)
    """Students to measure, or all; attention takes none."""
    runtimes: Annotated[tuple[str, ...], Field(min_length=1)] = RUNTIMES
    """Runtimes to measure; those named cuda need a GPU."""
    precisions: Annotated[tuple[str, ...], Field(min_length=1)] = PRECISIONS
    """Precisions to measure."""
    threads: _Positive = 2
    """Processor threads of one call."""
    runs: _Positive = 20
    """Samples of each row."""
    warmup: Annotated[int, Field(ge=0)] = 3
    """Calls of each row before its first sample."""
    rounds: _Positive = 4
    """Rounds over which the samples of each row are spread; the rows take turns."""
    max_foreign_load: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Largest share of the processors that other processes may use during a sample."""
    prompts: Annotated[tuple[_Positive, ...], Field(min_length=1)] = (1, 32, 64)
    """decoder: boxes per call, one row each."""
    batches: tuple[_Positive, ...] = ()
    """encoder: images per call, one row each; default: 1, and 16 on a GPU."""
    images: _Positive = 2
    """training: images per step; evaluate: images."""
    photographs: Path | None = None
    """evaluate: directory with instances.json and images/; default: rendered scenes."""
    tokens: Annotated[tuple[_Positive, ...], Field(min_length=1)] = (1024, 4096, 16384)
    """attention: sequence lengths."""
    steps: _Positive = 60
    """training: consecutive steps over which memory and waiting time are recorded."""
    points: _Positive = 32
    """everything: grid points per side."""
    weights: Path | None = None
    """Directory with a checkpoint artifact per student, such as artifacts/align; default: random weights."""
