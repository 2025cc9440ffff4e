"""Dilated attention: within segments of a sequence, each head attends among every r-th token.

Source: SAM-Lightening's Dilated Flash Attention (arXiv 2403.09195), with results scattered back as in LongNet's dilated
attention (arXiv 2307.02486). SAM-Lightening's published code attends along the batch and skips every odd position, so
this implementation follows the equations instead.

A segment has w tokens, the interval is r. Head h selects the tokens at positions ``h mod r``, ``h mod r + r``, ... of
each segment. They attend to each other as in plain attention, and the results go back to their own positions. Positions
that a head does not select get zeros from it; r neighbouring heads together select every position exactly once.

Cost. Dense attention of N tokens takes N^2 scores in each head. Here there are N / w segments of (w / r)^2 scores::

    N^2 / (N / w * (w / r)^2) = N r^2 / w

times fewer, where r divides w: 16 for N = 4096, w = 1024, r = 2. This excludes memory traffic and kernel launches;
``python -m pipeline bench attention`` reports both the formula and the measured time.

Implementation. Selected tokens are strided views: there is no gather and no mask. A partial last segment, or an
interval that does not divide a segment, only shortens a view. Results are scattered back by zero padding, so exported
graphs contain only slices, products and pads, without ScatterND.
"""

from collections.abc import Callable, Sequence
from functools import cache
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from pipeline.core.errors import InputError

Kernel = Literal["auto", "flash_attn", "sdpa"]
KERNELS: tuple[Kernel, ...] = ("auto", "flash_attn", "sdpa")

Pair = tuple[int, int]
"""Segment and interval, in tokens."""

Attend = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, ...]]
"""Queries, keys and values ``(b, n, heads, d)`` to results ``(b, n, heads, _)``."""

_FLASH_DTYPES = (torch.float16, torch.bfloat16)
_FLASH_HEAD_DIM = 256
_EMPTY_LSE = -1e30
"""Log-sum-exp where a head selects nothing: finite, so that a position that no pair selects gets zeros, not 0/0."""


def dilated_attention(
    q: Float[Tensor, "b h n d"],
    k: Float[Tensor, "b h n d"],
    v: Float[Tensor, "b h n d"],
    segment: int,
    interval: int,
    *,
    kernel: Kernel = "auto",
) -> Float[Tensor, "b h n d"]:
    """Attention within segments, among every ``interval``-th token, with softmax scale ``d ** -0.5``.

    Equals ``scaled_dot_product_attention(q, k, v)`` for ``segment >= N`` and ``interval == 1``. Otherwise it computes
    ``N * interval**2 / segment`` times fewer scores.

    Args:
        q: Queries. Views are not copied if their last dimension is contiguous.
        k: Keys.
        v: Values.
        segment: Tokens in a segment; more than N means all. N need not be a multiple.
        interval: Head h selects the tokens at ``h % interval``, ``h % interval + interval``, ... of each segment. Must
            divide the number of heads.
        kernel: ``sdpa`` is PyTorch's; ``flash_attn`` is the package of that name, for CUDA tensors in half precision
            with at most 256 channels per head; ``auto`` uses ``flash_attn`` where installed and applicable, and never
            for export.

    Raises:
        InputError: ``segment`` or ``interval`` is invalid, shapes differ, or the kernel is not available.
    """
    _check(q, k, v, segment, interval)
    return _in_segments(q, k, v, segment, interval, _resolve_kernel(kernel, q), fills=(0.0,))[0]


def mixed_dilated_attention(
    q: Float[Tensor, "b h n d"], k: Float[Tensor, "b h n d"], v: Float[Tensor, "b h n d"], pairs: Sequence[Pair]
) -> Float[Tensor, "b h n d"]:
    """Several dilated attentions, mixed per position and head by their sums of exponentiated scores.

    With ``lse`` the logarithm of that sum, each pair is weighted by the softmax of ``lse`` over the pairs, which equals
    one softmax over all the scores of all pairs. A pair that does not select a position has weight zero there.
    Gradients pass through the weights, so scores are materialised: fused kernels provide no gradient of ``lse``.

    Args:
        q: Queries.
        k: Keys.
        v: Values.
        pairs: (segment, interval), as in `dilated_attention`; a single pair gives the same result.

    Raises:
        InputError: ``pairs`` is empty, or a pair is invalid.
    """
    if not pairs:
        raise InputError("dilated attention needs at least one (segment, interval), for example [(1024, 2)].")
    if len(pairs) == 1:
        return dilated_attention(q, k, v, *pairs[0])
    for pair in pairs:
        _check(q, k, v, *pair)
    results = [_in_segments(q, k, v, *pair, _with_lse, fills=(0.0, _EMPTY_LSE)) for pair in pairs]
    weights = torch.stack([lse for _, lse in results]).softmax(dim=0)
    mixed = [out * weight.to(out.dtype) for (out, _), weight in zip(results, weights.unbind(), strict=True)]
    return sum(mixed[1:], start=mixed[0])


def fewer_scores(tokens: int, segment: int, interval: int) -> float:
    """Ratio of dense to dilated attention scores: ``N r^2 / w``, with w capped at N."""
    return tokens * interval**2 / min(segment, tokens)


def _check(q: Tensor, k: Tensor, v: Tensor, segment: int, interval: int) -> None:
    if not q.shape == k.shape == v.shape:
        shapes = ", ".join(str(tuple(x.shape)) for x in (q, k, v))
        raise InputError(f"queries, keys and values must have one shape (B, heads, N, head_dim), not {shapes}.")
    if segment < 1 or interval < 1:
        raise InputError(f"segment and interval must be at least 1, not {segment} and {interval}.")
    if q.shape[1] % interval:
        raise InputError(
            f"{q.shape[1]} heads cannot cover the {interval} positions of interval {interval}: "
            "choose an interval that divides the number of heads."
        )


def _in_segments(
    q: Tensor, k: Tensor, v: Tensor, segment: int, interval: int, attend: Attend, *, fills: Sequence[float]
) -> list[Tensor]:
    """Apply ``attend`` within segments and scatter the results back to ``(B, heads, N, _)``.

    Args:
        q: Queries ``(B, heads, N, d)``.
        k: Keys.
        v: Values.
        segment: Tokens in a segment.
        interval: Distance between selected tokens.
        attend: Returns one tensor for each of ``fills``.
        fills: Value of each tensor where a head selects nothing.
    """
    tokens = q.shape[2]
    segment = min(segment, tokens)
    whole = tokens - tokens % segment
    parts = []
    for part, length in ((slice(whole), segment), (slice(whole, tokens), tokens - whole)):
        if length:
            parts.append(_equal_segments(q[:, :, part], k[:, :, part], v[:, :, part], length, interval, attend, fills))
    return [(torch.cat(x, dim=1) if len(x) > 1 else x[0]).transpose(1, 2) for x in zip(*parts, strict=True)]


def _equal_segments(
    q: Tensor, k: Tensor, v: Tensor, segment: int, interval: int, attend: Attend, fills: Sequence[float]
) -> list[Tensor]:
    """`_in_segments` for N a multiple of ``segment``, with tokens before heads: ``(B, N, heads, _)``."""
    segments = q.shape[2] // segment
    by_offset = []
    for offset in range(min(interval, segment)):
        selected = (
            x[:, offset::interval].unflatten(2, (segments, segment))[:, :, :, offset::interval].permute(0, 2, 3, 1, 4)
            for x in (q, k, v)
        )
        by_offset.append(attend(*(x.flatten(0, 1) for x in selected)))
    scattered = []
    for result, fill in zip(zip(*by_offset, strict=True), fills, strict=True):
        rows = [_spread(x, offset, segment, interval, fill) for offset, x in enumerate(result)]
        # Offsets beyond a short segment: their heads select nothing.
        rows += [torch.full_like(rows[0], fill)] * (interval - len(rows))
        scattered.append(torch.stack(rows, dim=3).flatten(2, 3).unflatten(0, (-1, segments)).flatten(1, 2))
    return scattered


def _spread(x: Tensor, offset: int, segment: int, interval: int, fill: float) -> Tensor:
    """Write rows ``(b, m, heads, _)`` to ``offset``, ``offset + interval``, ... of ``(b, segment, heads, _)``."""
    if interval == 1:
        return x
    between = F.pad(x.unsqueeze(2), (0, 0, 0, 0, offset, interval - 1 - offset), value=fill).flatten(1, 2)
    missing = segment - between.shape[1]  # negative where the last interval reaches beyond the segment
    return F.pad(between, (0, 0, 0, 0, 0, missing), value=fill) if missing else between


def _sdpa(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    out = F.scaled_dot_product_attention(q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2))
    return (out.transpose(1, 2),)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _flash_fault() -> str | None:
    """Why flash-attn 2 cannot be used; None if it can."""
    return _import_fault()


@cache
def _import_fault() -> str | None:
    """See `_flash_fault`, which `torch.compile` does not trace.

    That the package exists says little: flash-attn-4 has the same name without this function, and a build for another
    torch fails when it is imported.
    """
    try:
        from flash_attn import flash_attn_func  # noqa: F401
    except (ImportError, OSError) as error:
        return str(error).splitlines()[0] if str(error) else type(error).__name__
    return None


def _flash_attn(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    from flash_attn import flash_attn_func

    return (flash_attn_func(q, k, v),)


def _with_lse(q: Tensor, k: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    # Scaled before the product, which would overflow half precision; fp32 after it.
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    scores = scores if scores.dtype == torch.float64 else scores.float()
    lse = torch.logsumexp(scores, dim=-1, keepdim=True)
    return (scores.softmax(dim=-1).to(v.dtype) @ v).transpose(1, 2), lse.transpose(1, 2)


def _resolve_kernel(kernel: Kernel, q: Tensor) -> Attend:
    """Return the kernel of that name.

    Raises:
        InputError: The name is unknown, or the kernel does not support ``q``.
    """
    if kernel not in KERNELS:
        raise InputError(f"unknown kernel {kernel!r}: choose one of {', '.join(KERNELS)}.")
    fits = q.is_cuda and q.dtype in _FLASH_DTYPES and q.shape[-1] <= _FLASH_HEAD_DIM
    if kernel == "flash_attn":
        if fault := _flash_fault():
            raise InputError(
                f"the kernel flash_attn needs flash-attn 2, which cannot be imported ({fault}): install it on a "
                "machine with CUDA (docs/gpu.md), or choose the kernel sdpa."
            )
        if not fits:
            raise InputError(
                f"the kernel flash_attn takes CUDA tensors in half precision with at most {_FLASH_HEAD_DIM} channels "
                f"per head, not {q.dtype} on {q.device} with {q.shape[-1]}: choose the kernel sdpa."
            )
        return _flash_attn
    plain = kernel == "sdpa" or not fits or torch.compiler.is_exporting() or _flash_fault() is not None
    return _sdpa if plain else _flash_attn
