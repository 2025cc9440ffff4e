"""Time per instance of the evaluation by a box and 1, 3 and 5 clicks: the published implementation and ours.

The baseline is `pipeline.evaluate.reference`: segment-anything's predictor and decoder, one prompt at a time, ten
prompts. Ours is that of the stage ``evaluate``: six prompts, in batches. Images are encoded in advance, so the
encoder's time is excluded; comparing masks with ground truth is included in both.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from PIL import Image
from torch import Tensor

from pipeline.bench.candidate import Candidate, Subject
from pipeline.bench.decoder import macs_per_prompt, ours, published
from pipeline.bench.engines import Exported, files_mib, model, refuses_int8_too, weights_mib
from pipeline.bench.settings import Combination, Settings
from pipeline.data import coco
from pipeline.data.scenes import render
from pipeline.evaluate import reference
from pipeline.evaluate.prompting import Answer, ask
from pipeline.models.cost import count_parameters
from pipeline.models.sam import Sam
from pipeline.ops import masks, metrics
from pipeline.ops.geometry import to_input
from pipeline.runtime import Predictor, Segmenter, load

_BYTES_AT_ONCE = 1 << 24
"""Limit on the decoder's largest tensor: above it, memory is returned to the system and allocated again in every call,
which takes longer than a batch saves."""
_PROMPTS = {"reference": 10, "evaluate": 6}
"""Prompts decoded per instance: 1 + 1 + 3 + 5, and 1 + 5."""

Mask = Bool[np.ndarray, "h w"]
Ious = dict[tuple[int, int, str], float]
"""IoU by image, instance and prompt."""


@dataclass(frozen=True)
class _Example:
    """An image and its instances."""

    pixels: UInt8[np.ndarray, "h w 3"]
    truths: list[Mask]


@dataclass(frozen=True)
class _Way:
    """One implementation of the evaluation, and its last results."""

    run: Callable[[Ious], object]
    ious: Ious = field(default_factory=dict)
    processor_s: list[float] = field(default_factory=list)
    """Processor time of all threads per call, which excludes waiting for a busy machine."""

    def __call__(self) -> None:
        began = time.process_time()
        self.run(self.ious)
        self.processor_s.append(time.process_time() - began)


class _Encoded:
    """A segmenter with cached embeddings."""

    def __init__(self, segmenter: Segmenter, embeddings: Tensor) -> None:
        self.image_size, self.input_size = segmenter.image_size, segmenter.input_size
        self.embedding_size, self.decode = segmenter.embedding_size, segmenter.decode
        self._embeddings = embeddings

    def encode(self, images: Tensor) -> Tensor:
        """Return the cached embeddings."""
        return self._embeddings


def _build(
    settings: Settings, student: str, combinations: Sequence[Combination], directory: Path, stack: ExitStack
) -> list[Candidate]:
    sam = model(settings, student)
    examples = _examples(settings, sam.input_size)
    with torch.inference_mode():
        inputs = [to_input(example.pixels, sam.input_size)[None] for example in examples]
        embeddings = torch.cat([sam.image_encoder(pixels) for pixels in inputs])
    pool = stack.enter_context(ThreadPoolExecutor(settings.threads))
    exported = Exported(sam, student, combinations, directory)
    slow = _Way(_reference(sam, embeddings, examples))
    ways = [("reference", ("torch", "fp32"), slow, weights_mib(sam.prompt_encoder, sam.mask_decoder))]
    for runtime, precision in combinations:
        if runtime == "torch":
            segmenter, size_mib = load(sam), ways[0][3]
        else:
            segmenter, files = exported.engine(runtime, precision, settings.threads)
            size_mib = files_mib(files, "decoder")
        way = _Way(_ours(_Encoded(segmenter, embeddings), examples, pool))
        ways.append(("evaluate", (runtime, precision), way, size_mib))
    batch = _at_once(sam.embedding_size)
    per_prompt = {"reference": macs_per_prompt(sam, published, 1), "evaluate": macs_per_prompt(sam, ours, batch)}
    return [
        Candidate(
            name=f"{student} {name}",
            runtime=runtime,
            precision=precision,
            call=way,
            batch=sum(len(example.truths) for example in examples),
            divide=True,
            parameters=count_parameters(sam.prompt_encoder) + count_parameters(sam.mask_decoder),
            gmacs=_PROMPTS[name] * per_prompt[name] / 1e9,
            size_mib=size_mib,
            group=student,
            figures=_figures(way, slow, sum(len(example.truths) for example in examples)),
        )
        for name, (runtime, precision), way, size_mib in ways
    ]


def _reference(sam: Sam, embeddings: Tensor, examples: Sequence[_Example]) -> Callable[[Ious], object]:
    predictor = reference.predictor_of(sam)

    def run(ious: Ious) -> None:
        with torch.inference_mode():
            for k, example in enumerate(examples):
                height, width = example.pixels.shape[:2]
                reference.set_embedding(predictor, embeddings[k : k + 1], (height, width))
                for i, truth in enumerate(example.truths):
                    for answer in reference.answers(predictor, truth, with_mask_input=False):
                        ious[k, i, answer.prompt] = metrics.iou(answer.mask, truth)

    return run


def _ours(segmenter: Segmenter, examples: Sequence[_Example], pool: ThreadPoolExecutor) -> Callable[[Ious], object]:
    predictor = Predictor(segmenter)
    predictor.set_images([example.pixels for example in examples])
    batch = _at_once(segmenter.embedding_size)

    def run(ious: Ious) -> None:
        coming = dict[tuple[int, int, str], Future[float]]()
        with torch.inference_mode():
            for k, example in enumerate(examples):

                def answered(i: int, answer: Answer, k: int = k, truths: Sequence[Mask] = example.truths) -> None:
                    coming[k, i, answer.prompt] = pool.submit(metrics.iou, answer.mask, truths[i])

                predictor.select(k)
                ask(predictor, example.truths, pool, batch, False, answered)
        ious |= {key: value.result() for key, value in coming.items()}

    return run


def _at_once(embedding_size: int) -> int:
    """Prompts per batch: the decoder's largest tensor has 32 channels at the masks' resolution, in fp32."""
    return max(1, _BYTES_AT_ONCE // (32 * 4 * (4 * embedding_size) ** 2))


def _figures(way: _Way, slow: _Way, instances: int) -> Callable[[float], Mapping[str, float]]:
    """Processor time per instance, the largest IoU difference, and the share of IoUs that differ by more than 1e-6."""

    def figures(median_ms: float) -> Mapping[str, float]:
        gaps = np.array([abs(value - slow.ious[key]) for key, value in way.ious.items()])
        return {
            "processor_ms": 1000 * float(np.median(way.processor_s)) / instances,
            "largest_difference": float(gaps.max()),
            "different_share": float((gaps > 1e-6).mean()),
        }

    return figures


def _examples(settings: Settings, side: int) -> list[_Example]:
    """Read the first photographs with instances, or render scenes."""
    if settings.photographs is None:
        scenes = [render(np.random.default_rng(number), side) for number in range(settings.images)]
        return [_Example(scene.image, [mask for mask in scene.masks if mask.any()]) for scene in scenes]
    content = coco.read(settings.photographs / "instances.json", min_area_px=1).photographs
    shown = [photograph for photograph in content if photograph.instances][: settings.images]
    return [
        _Example(
            np.asarray(Image.open(settings.photographs / "images" / photograph.file_name).convert("RGB")),
            [np.ascontiguousarray(masks.decode(instance.rle)) for instance in photograph.instances],
        )
        for photograph in shown
    ]


SUBJECT = Subject(
    says="milliseconds per instance of the evaluation by a box and 1, 3 and 5 clicks: published, and ours",
    unit="one instance, the encoder left out",
    refuses=refuses_int8_too,
    build=_build,
)
