"""Time of one box in the decoder, alone and in batches on one image: segment-anything's decoder and ours.

The baseline is the computation of ``SamPredictor.predict`` for a box between its two resizings: prompt encoder, then
mask decoder. Resizing masks costs the same for all and is not measured. segment-anything is measured with the C
library's default memory allocation, and with the limits of `pipeline.runtime.processor.keep_pages`, which help it too.
"""

import copy
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.bench.candidate import Candidate, Subject
from pipeline.bench.engines import Exported, files_mib, model, refuses_int8_too, weights_mib
from pipeline.bench.settings import Combination, Settings
from pipeline.models.cost import count_parameters
from pipeline.models.decoder import decode
from pipeline.models.sam import EMBEDDING_CHANNELS, Sam
from pipeline.runtime.processor import keep_pages
from pipeline.runtime.pytorch import TorchSegmenter

Decoder = Callable[[Sam, Tensor, Tensor], object]
"""Decodes boxes ``(P, 4)`` in the prompt frame on an embedding ``(1, 256, g, g)``."""


def _build(
    settings: Settings, student: str, combinations: Sequence[Combination], directory: Path, stack: ExitStack
) -> list[Candidate]:
    sam = model(settings, student)
    sam.image_encoder = _patches(sam)  # not measured, and exporting the real encoder takes minutes
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(1, EMBEDDING_CHANNELS, sam.embedding_size, sam.embedding_size, generator=generator)
    corners = torch.rand(max(settings.prompts), 2, 2, generator=generator).sort(dim=1).values * sam.image_size
    boxes = corners.flatten(1)
    candidates, exported = list[Candidate](), Exported(sam, student, combinations, directory)
    for runtime, precision in combinations:
        if runtime == "torch":
            size_mib = weights_mib(sam.prompt_encoder, sam.mask_decoder)
            ways = {
                "segment_anything": (published, _as_found(_call(published, sam))),
                "segment_anything, pages kept": (published, _call(published, sam)),
                "decode": (ours, _engine(TorchSegmenter(sam).decode)),
            }
        else:
            segmenter, files = exported.engine(runtime, precision, settings.threads)
            size_mib = files_mib(files, "decoder")
            ways = {"decode": (ours, _engine(segmenter.decode))}
        candidates += [
            Candidate(
                name=f"{student} {way} x{count}",
                runtime=runtime,
                precision=precision,
                call=_bound(call, embedding, boxes[:count]),
                batch=count,
                divide=True,
                parameters=count_parameters(sam.prompt_encoder) + count_parameters(sam.mask_decoder),
                gmacs=macs_per_prompt(sam, meant, count) / 1e9,
                size_mib=size_mib,
            )
            for way, (meant, call) in ways.items()
            for count in sorted(set(settings.prompts))
        ]
    return candidates


def published(sam: Sam, embedding: Float[Tensor, "1 256 g g"], boxes: Float[Tensor, "p 4"]) -> object:
    """segment-anything's two forward passes, as its predictor calls them for boxes."""
    sparse, dense = sam.prompt_encoder(points=None, boxes=boxes, masks=None)
    return sam.mask_decoder(
        image_embeddings=embedding,
        image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=True,
    )


def ours(sam: Sam, embedding: Float[Tensor, "1 256 g g"], boxes: Float[Tensor, "p 4"]) -> object:
    """Compute the same masks with `pipeline.models.decoder.decode`."""
    coords, labels = _points(boxes)
    return decode(sam, embedding, coords[None], labels[None])


def macs_per_prompt(sam: Sam, way: Decoder, count: int) -> int:
    """Count multiply-accumulates per box for ``count`` boxes decoded together, on the meta device."""
    shapes = copy.deepcopy(sam).to("meta")
    grid = sam.embedding_size
    embedding = torch.empty(1, EMBEDDING_CHANNELS, grid, grid, device="meta")
    with torch.inference_mode(), FlopCounterMode(display=False) as counter:
        way(shapes, embedding, torch.empty(count, 4, device="meta"))
    return counter.get_total_flops() // 2 // count


def _points(boxes: Tensor) -> tuple[Tensor, Tensor]:
    """Convert boxes to pairs of points ``(P, 2, 2)`` with labels 2 and 3."""
    return boxes.unflatten(1, (2, 2)), torch.tensor([2.0, 3.0], device=boxes.device).expand(len(boxes), 2)


def _patches(sam: Sam) -> nn.Module:
    """A single convolution with the encoder's input and output shapes."""
    side = sam.input_size // sam.embedding_size
    return nn.Conv2d(3, EMBEDDING_CHANNELS, side, stride=side)


def _call(way: Decoder, sam: Sam) -> Callable[[Tensor, Tensor], object]:
    return torch.inference_mode()(lambda embedding, boxes: way(sam, embedding, boxes))


def _as_found(call: Callable[[Tensor, Tensor], object]) -> Callable[[Tensor, Tensor], object]:
    """Run without the limits on freed memory that our segmenter sets for the process."""

    def guarded(embedding: Tensor, boxes: Tensor) -> object:
        keep_pages(False)
        try:
            return call(embedding, boxes)
        finally:
            keep_pages()

    return guarded


def _engine(decode_prompts: Callable[[Tensor, Tensor, Tensor], object]) -> Callable[[Tensor, Tensor], object]:
    return lambda embedding, boxes: decode_prompts(embedding, *_points(boxes))


def _bound(call: Callable[[Tensor, Tensor], object], embedding: Tensor, boxes: Tensor) -> Callable[[], object]:
    return lambda: call(embedding, boxes)


SUBJECT = Subject(
    says="milliseconds per prompt of the decoder: segment_anything's and ours, box by box and in batches",
    unit="one prompt",
    refuses=refuses_int8_too,
    build=_build,
)
