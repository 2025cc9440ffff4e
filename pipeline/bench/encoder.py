"""Latency of the image encoder for one image or a batch, without resizing.

The memory limits of `keep_pages` concern the whole process, so every row is measured with them. The baseline is the
teacher with the students' prompt frame in PyTorch fp32: SAM ViT-B, or the bundled teacher if all students are nano.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor, nn

from pipeline.bench import cuda
from pipeline.bench.candidate import Candidate, Subject
from pipeline.bench.engines import Exported, files_mib, model, refuses, weights_mib
from pipeline.bench.peak import peak_macs_per_s
from pipeline.bench.settings import CUDA, Combination, Settings
from pipeline.evaluate.timing import cuda_events, wall
from pipeline.models import build
from pipeline.models.cost import count_parameters, macs
from pipeline.runtime.pytorch import DTYPES, TorchSegmenter


def _refuses(runtime: str, precision: str) -> str | None:
    return cuda.refuses(precision) if runtime in CUDA else refuses(runtime, precision)


def _reference(students: Sequence[str]) -> str:
    with torch.device("meta"):
        sides = {name: build(name).image_size for name in (*students, "bundled")}
    return "bundled" if max(sides.values()) == sides["bundled"] else "vit_b"


def _build(
    settings: Settings, student: str, combinations: Sequence[Combination], directory: Path, stack: ExitStack
) -> list[Candidate]:
    sam = model(settings, student)
    parameters, gmacs = count_parameters(sam.image_encoder), macs(sam)["encoder"] / 1e9
    exported, candidates = Exported(sam, student, combinations, directory), list[Candidate]()
    for runtime, precision in combinations:
        engine = exported.engine(runtime, precision, settings.threads) if runtime not in ("torch", *CUDA) else None
        # A GPU reaches its throughput with batches.
        for batch in settings.batches or ((1, 16) if runtime in CUDA else (1,)):
            pixels = torch.randn(batch, 3, sam.input_size, sam.input_size, generator=torch.Generator().manual_seed(0))
            figures = _peak_share(precision, settings.threads, gmacs * batch)
            if runtime in CUDA:
                call, size_mib, figures = cuda.encoding(sam.image_encoder, runtime, precision, pixels, gmacs)
            elif engine:
                call, size_mib = _encoding(engine[0].encode, pixels), files_mib(engine[1], "encoder")
            else:
                segmenter = TorchSegmenter(sam, threads=settings.threads, precision=precision)
                call, size_mib = _encoding(segmenter.encode, pixels), _size_mib(sam.image_encoder, precision)
            candidates.append(
                Candidate(
                    name=student,
                    runtime=runtime,
                    precision=precision,
                    call=call,
                    clock=cuda_events if runtime in CUDA else wall,
                    batch=batch,
                    divide=True,
                    parameters=parameters,
                    gmacs=gmacs,
                    size_mib=size_mib,
                    figures=figures,
                )
            )
    return candidates


def _peak_share(precision: str, threads: int, gmacs: float) -> Callable[[float], Mapping[str, float]]:
    """``peak_share``: multiply-accumulates per second relative to a large product in the same precision."""
    return lambda median_ms: {"peak_share": gmacs * 1e9 / (median_ms / 1e3) / peak_macs_per_s(precision, threads)}


def _size_mib(encoder: nn.Module, precision: str) -> float:
    return weights_mib(copy.deepcopy(encoder).to(DTYPES[precision]))


def _encoding(encode: Callable[[Tensor], Tensor], pixels: Tensor) -> Callable[[], object]:
    return lambda: encode(pixels)


SUBJECT = Subject(
    says="latency of the image encoder, per image",
    unit="one image",
    refuses=_refuses,
    build=_build,
    reference=_reference,
)
