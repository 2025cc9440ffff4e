"""Time of attention: dense, and dilated by segment and interval, for several sequence lengths.

Queries, keys and values are views of one projection, as in the encoder. The column ``formula`` is the theoretical
reduction in scores over dense attention, ``N r^2 / w``; the column ``speedup`` is the measured one.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from pipeline.bench import cuda
from pipeline.bench.candidate import Candidate, Subject
from pipeline.bench.engines import refuses
from pipeline.bench.settings import CUDA, Combination, Settings
from pipeline.evaluate.timing import cuda_events, wall
from pipeline.models.attention import Pair, dilated_attention, fewer_scores

HEADS, HEAD_DIM = 6, 64
PAIRS: tuple[Pair, ...] = ((1024, 1), (1024, 2), (1024, 3), (512, 2), (256, 2))
"""Pairs of segment and interval."""


def _refuses(runtime: str, precision: str) -> str | None:
    if precision == "int8":
        return "products of activations are not lowered to int8"
    if runtime == "cuda":
        return cuda.refuses(precision)
    if runtime == "torch":
        return refuses(runtime, precision)
    return "attention alone is measured in eager PyTorch; `bench encoder` has the whole in every runtime"


def _build(
    settings: Settings, student: str, combinations: Sequence[Combination], directory: Path, stack: ExitStack
) -> list[Candidate]:
    return [
        Candidate(
            name=name,
            runtime=runtime,
            precision=precision,
            call=call,
            clock=cuda_events if runtime in CUDA else wall,
            batch=1,
            parameters=0,
            gmacs=2 * HEADS * HEAD_DIM * tokens**2 / formula / 1e9,
            size_mib=None,
            group=f"{tokens} {runtime} {precision}",
            figures=_formula(formula),
        )
        for runtime, precision in combinations
        for tokens in sorted(set(settings.tokens))
        for name, call, formula in _ways(tokens, runtime, precision)
    ]


def _ways(tokens: int, runtime: str, precision: str) -> list[tuple[str, Callable[[], object], float]]:
    """Name, call and theoretical speedup of each kind of attention, dense first."""
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(1, tokens, 3, HEADS, HEAD_DIM, generator=generator)
    q, k, v = qkv.to("cuda" if runtime in CUDA else "cpu", cuda.DTYPES[precision]).permute(2, 0, 3, 1, 4)
    dense = torch.inference_mode()(lambda: F.scaled_dot_product_attention(q, k, v))
    return [
        (f"dense x{tokens}", dense, 1.0),
        *(
            (f"dilated {segment}/{interval} x{tokens}", _dilated(q, k, v, (segment, interval)),
             fewer_scores(tokens, segment, interval))
            for segment, interval in PAIRS
        ),
    ]  # fmt: skip


def _formula(gain: float) -> Callable[[float], Mapping[str, float]]:
    return lambda median_ms: {"formula": gain}


def _dilated(q: Tensor, k: Tensor, v: Tensor, pair: Pair) -> Callable[[], object]:
    return torch.inference_mode()(lambda: dilated_attention(q, k, v, *pair))


SUBJECT = Subject(
    says="time of attention alone: dense, and dilated by segment and interval, for each number of --tokens",
    unit="attention over one sequence",
    refuses=_refuses,
    build=_build,
    of_students=False,
)
