"""Encoders on a GPU, and the GPU's peak throughput."""

import copy
from collections.abc import Callable, Mapping
from functools import cache

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.bench.engines import weights_mib
from pipeline.evaluate.timing import cuda_events, measure
from pipeline.runtime.graphs import capture

DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}

_SIDE = 8192
"""Side of the matrices whose product measures the peak."""


def refuses(precision: str) -> str | None:
    """Reason why a precision cannot be measured on this machine's GPU; None if it can."""
    if not torch.cuda.is_available():
        return "there is no CUDA device here"
    return None if precision in DTYPES else "PyTorch runs no QDQ graph; on a GPU take bf16 or fp16"


def encoding(
    encoder: nn.Module, runtime: str, precision: str, pixels: Float[Tensor, "b 3 s s"], gmacs: float
) -> tuple[Callable[[], object], float, Callable[[float], Mapping[str, float]]]:
    """Prepare an encoder; returns its call, the size of its weights in MiB, and its figures.

    The figures are ``peak_mib``, the peak memory of weights and activations; ``images_per_s``; and ``bf16_peak_share``,
    multiply-accumulates per second relative to a large bf16 product.

    Args:
        encoder: Not changed.
        runtime: One of `pipeline.bench.settings.CUDA`.
        precision: A key of `DTYPES`.
        pixels: A batch on the processor.
        gmacs: 10^9 multiply-accumulates of one image.
    """
    before = torch.cuda.memory_allocated()
    encoder, pixels = copy.deepcopy(encoder).to("cuda", DTYPES[precision]), pixels.to("cuda", DTYPES[precision])
    if runtime == "cuda_compile":
        encoder.compile()

    @torch.inference_mode()
    def forward() -> Tensor:
        embedding: Tensor = encoder(pixels)
        return embedding

    forward()  # compilation and the selection of algorithms need additional memory
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    call = capture(forward) if runtime == "cuda_graph" else forward
    call()
    torch.cuda.synchronize()
    peak_mib = (torch.cuda.max_memory_allocated() - before) / 2**20
    batch = len(pixels)

    def figures(median_ms: float) -> Mapping[str, float]:
        macs_per_s = gmacs * 1e9 * batch / (median_ms / 1e3)
        return {
            "peak_mib": peak_mib,
            "images_per_s": 1e3 * batch / median_ms,
            "bf16_peak_share": macs_per_s / peak_macs_per_s(),
        }

    return call, weights_mib(encoder), figures


@cache
def peak_macs_per_s() -> float:
    """Measure multiply-accumulates per second of a large bf16 product on the current device."""
    a, b = (torch.randn(_SIDE, _SIDE, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    timing = measure(lambda: a @ b, warmup=3, runs=20, max_foreign_load=1.0, clock=cuda_events)
    return float(_SIDE**3 / (timing.median_ms / 1e3))
