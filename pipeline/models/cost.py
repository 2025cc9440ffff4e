"""Cost of a model: parameters, and multiply-accumulates of its convolutions and matrix products."""

import copy

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.models.decoder import decode
from pipeline.models.sam import EMBEDDING_CHANNELS, Sam


def count_parameters(module: nn.Module) -> int:
    """Number of parameters of a module, without buffers."""
    return sum(parameter.numel() for parameter in module.parameters())


def macs(sam: Sam) -> dict[str, int]:
    """Multiply-accumulates per image and per prompt, counted on the meta device.

    Returns:
        ``encoder``: one image. ``decoder_per_prompt``: a single point and its padding point, decoded by
        `pipeline.models.decoder.decode`, which needs fewer than SAM's published order of products.
    """
    meta = _on_meta(sam).eval()
    side, grid = sam.input_size, sam.embedding_size
    with torch.inference_mode():
        with FlopCounterMode(display=False) as encoder:
            meta.image_encoder(torch.empty(1, 3, side, side, device="meta"))
        with FlopCounterMode(display=False) as decoder:
            decode(
                meta,
                torch.empty(1, EMBEDDING_CHANNELS, grid, grid, device="meta"),
                torch.empty(1, 1, 2, 2, device="meta"),
                torch.empty(1, 1, 2, device="meta"),
            )
    return {"encoder": encoder.get_total_flops() // 2, "decoder_per_prompt": decoder.get_total_flops() // 2}


def _on_meta(sam: Sam) -> Sam:
    """Copy the model to the meta device; ``copy.deepcopy(sam).to("meta")`` would temporarily duplicate the weights."""
    tensors = [*sam.parameters(), *sam.buffers()]
    empty = {id(t): torch.empty_like(t, device="meta") for t in tensors}
    parameters = {id(p): nn.Parameter(empty[id(p)], requires_grad=p.requires_grad) for p in sam.parameters()}
    return copy.deepcopy(sam, {**empty, **parameters})
