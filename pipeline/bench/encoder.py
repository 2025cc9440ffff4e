"""Latency of the image encoder: one image, one forward pass, no resizing around it."""

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.bench.candidate import Candidate, Subject
from pipeline.bench.engines import Exported, files_mib, model, weights_mib
from pipeline.bench.settings import Combination, Settings
from pipeline.models.cost import count_parameters, macs
from pipeline.models.sam import Sam


def _refuses(runtime: str, precision: str) -> str | None:
    return {
        ("torch", "int8"): "PyTorch runs no QDQ graph; take onnxruntime or openvino",
        ("onnxruntime", "bf16"): "ONNX Runtime computes in fp32 on CPUs; take openvino",
    }.get((runtime, precision))


def _build(
    settings: Settings, student: str, combinations: Sequence[Combination], directory: Path, stack: ExitStack
) -> list[Candidate]:
    sam = model(settings, student)
    parameters, gmacs = count_parameters(sam.image_encoder), macs(sam)["encoder"] / 1e9
    pixels = torch.randn(1, 3, sam.input_size, sam.input_size, generator=torch.Generator().manual_seed(0))
    exported = None
    candidates = []
    for runtime, precision in combinations:
        if runtime == "torch":
            call, size_mib = _in_torch(sam, precision, pixels)
        else:
            exported = exported or Exported(sam, student, combinations, directory)
            segmenter, files = exported.engine(runtime, precision, settings.threads)
            call, size_mib = _encoding(segmenter.encode, pixels), files_mib(files, "encoder")
        candidates.append(
            Candidate(
                name=student,
                runtime=runtime,
                precision=precision,
                call=call,
                batch=1,
                parameters=parameters,
                gmacs=gmacs,
                size_mib=size_mib,
            )
        )
    return candidates


def _in_torch(sam: Sam, precision: str, pixels: Float[Tensor, "1 3 s s"]) -> tuple[Callable[[], object], float]:
    """Eager mode; bf16 means weights and activations, but where the model itself asks for fp32."""
    encoder = sam.image_encoder
    if precision == "bf16":
        encoder, pixels = copy.deepcopy(encoder).bfloat16(), pixels.bfloat16()
    return torch.inference_mode()(_encoding(encoder, pixels)), weights_mib(encoder)


def _encoding(encode: Callable[[Tensor], Tensor], pixels: Tensor) -> Callable[[], object]:
    return lambda: encode(pixels)


SUBJECT = Subject(
    says="latency of the image encoder, one image at a time",
    unit="one image",
    refuses=_refuses,
    build=_build,
)
