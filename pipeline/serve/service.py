"""What the server does, without HTTP: embed images, predict masks, and change the model while serving."""

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any, TypeVar

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.core.errors import InputError
from pipeline.runtime.prompts import prepare
from pipeline.serve import answers, images
from pipeline.serve.metrics import Metrics
from pipeline.serve.model import DecoderInput, Model
from pipeline.serve.problems import Problem, invalid
from pipeline.serve.scheduler import Scheduler
from pipeline.serve.schemas import PredictRequest, Prompt
from pipeline.serve.settings import ServeSettings
from pipeline.serve.source import Source
from pipeline.serve.store import Entry, Store

LOG = logging.getLogger("pipeline.serve")
ResultT = TypeVar("ResultT")


@dataclass(frozen=True)
class Embedded:
    """An image with its embedding by one model."""

    model: Model
    entry: Entry
    embedding: Float[Tensor, "1 256 g g"]


class Service:
    """Answers requests with the model that is current when they start. Used from one event loop.

    Args:
        model: The first model.
        source: Where the next ones come from.
        settings: Limits.
    """

    def __init__(self, model: Model, source: Source, settings: ServeSettings) -> None:
        self.model, self.settings, self.metrics = model, settings, Metrics()
        self.store = Store(settings.keep_mib << 20, self.metrics.stored)
        self.scheduler = Scheduler(settings.max_batch, self.metrics.batched)
        self._source = source
        self._threads = ThreadPoolExecutor(settings.workers, "worker")
        self._encoding: dict[tuple[str, str], asyncio.Task[Entry]] = {}
        self._refused: str | None = None
        self.metrics.queue.set_function(lambda: len(self.scheduler))
        self._announce()

    async def embed(self, image_id: str | None, raw: bytes | None) -> Embedded:
        """The embedding of an image, which is encoded unless it is in memory.

        Raises:
            Problem: There is no image of this id in memory, or ``raw`` is not an image within the limits.
        """
        model = self.model
        image_id = images.id_of(raw) if raw is not None else str(image_id)
        entry = self.store.get(image_id)
        if entry is not None and model.digest in entry.embeddings:
            self.metrics.lookups.labels("hit").inc()
            return Embedded(model, entry, entry.embeddings[model.digest])
        self.metrics.lookups.labels("miss").inc()
        raw = entry.raw if entry is not None else raw
        key = (image_id, model.digest)
        if raw is None and key not in self._encoding:
            raise Problem(404, "no image of this id is in memory: send the image again.")
        if key not in self._encoding:  # those who send the same image meanwhile wait for this task
            task = asyncio.create_task(self._encode(model, image_id, raw or b"", entry))
            self._encoding[key] = task
            task.add_done_callback(lambda done: (self._encoding.pop(key) and done.cancelled()) or done.exception())
        entry = await asyncio.shield(self._encoding[key])
        return Embedded(model, entry, entry.embeddings[model.digest])

    async def _encode(self, model: Model, image_id: str, raw: bytes, entry: Entry | None) -> Entry:
        side = model.segmenter.input_size
        size, pixels = await self.in_thread(images.model_input, raw, self.settings.max_pixels, side)
        embedding = await self.scheduler.submit(("images", model), model.encode, pixels)
        entry = entry or Entry(image_id, raw, size)
        entry.embeddings[model.digest] = embedding
        self.store.put(entry)
        return entry

    async def predict(self, request: PredictRequest) -> tuple[dict[str, Any], dict[str, float]]:
        """Masks for prompts, and the seconds of each step.

        Raises:
            Problem: See `embed`; or a prompt is invalid.
        """
        if len(request.prompts) > self.settings.max_prompts:
            raise invalid(f"prompts has {len(request.prompts)} entries, more than {self.settings.max_prompts}.")
        start = perf_counter()
        raw = None if request.image is None else await self.in_thread(images.from_base64, request.image)
        embedded = await self.embed(request.image_id, raw)
        encoded = perf_counter()
        groups = _grouped(request.prompts)
        inputs = [_decoder_input([request.prompts[i] for i in group], embedded) for group in groups]
        decoded = await asyncio.gather(*(self.decode(embedded, part) for part in inputs))
        predicted = perf_counter()
        masks = list[Any]([None] * len(request.prompts))
        for group, (logits, ious) in zip(groups, decoded, strict=True):
            for row, found in zip(group, await self.in_thread(_answers, request, embedded, logits, ious), strict=True):
                masks[row] = found
        entry, seconds = embedded.entry, perf_counter()
        answer = {"image_id": entry.image_id, "size": entry.size, "masks": masks, "model": embedded.model.described()}
        return answer, {"encode": encoded - start, "decode": predicted - encoded, "masks": seconds - predicted}

    async def decode(self, embedded: Embedded, part: DecoderInput) -> tuple[Tensor, Tensor]:
        """Decode prompts of equally many points, together with those of other requests on this image.

        They are split so that no batch exceeds ``max_batch``.
        """
        coords, labels, masks = part
        key = ("prompts", embedded.model, embedded.entry.image_id, coords.shape[1], masks is None)
        run, step, jobs = partial(embedded.model.decode, embedded.embedding), self.settings.max_batch, []
        for start in range(0, len(coords), step):
            rows = slice(start, start + step)
            piece = (coords[rows], labels[rows], None if masks is None else masks[rows])
            jobs.append(self.scheduler.submit(key, run, piece, len(piece[0])))
        results = await asyncio.gather(*jobs)
        return torch.cat([logits for logits, _ in results]), torch.cat([ious for _, ious in results])

    async def in_thread(self, function: Callable[..., ResultT], *arguments: Any) -> ResultT:
        """Run a function in one of the worker threads."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function, *arguments)

    async def watch(self) -> None:
        """Take up new versions until cancelled."""
        while True:
            await asyncio.sleep(self.settings.watch_s)
            await self.update()

    async def update(self) -> bool:
        """Take up the source's version if it is new and passes its self-check; it is asked once for each.

        Requests in progress end with the model they started with. Images in memory are encoded anew when used.

        Returns:
            Whether the model changed.
        """
        try:
            version = await asyncio.to_thread(self._source.version)
        except InputError as error:
            LOG.warning("the registry is not available, version %s stays: %s", self.model.version, error)
            return False
        if version in (self.model.version, self._refused):
            return False
        try:
            settings = self.settings
            model = await asyncio.to_thread(Model.fetch, self._source, version, settings.device, settings.threads)
        except Exception as error:  # noqa: BLE001 - whatever a model raises, the current one stays
            self._refused = version
            self.metrics.swaps.labels("refused").inc()
            LOG.warning("version %s is refused, version %s stays: %s", version, self.model.version, error)
            return False
        before, self.model, self._refused = self.model, model, None
        if before.digest != model.digest:
            self.store.forget(before.digest)
        self.metrics.swaps.labels("taken").inc()
        self._announce()
        return True

    def _announce(self) -> None:
        described = self.model.described()
        self.metrics.serving(*(described[name] for name in ("name", "precision", "version", "digest")))
        version = f", version {self.model.version}" if self.model.version else ""
        LOG.warning("serving %s %s%s: %s", described["name"], described["precision"], version, self.model.check)

    @contextlib.asynccontextmanager
    async def running(self) -> Any:
        """Run the model thread, and watch the source."""
        tasks = [asyncio.create_task(self.scheduler.work()), asyncio.create_task(self.watch())]
        try:
            yield
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._threads.shutdown(wait=False, cancel_futures=True)


def _grouped(prompts: Sequence[Prompt]) -> list[list[int]]:
    """Indices of prompts with equally many points, and a box and a mask or none: padding would change the masks."""
    groups: dict[tuple[int, bool, bool], list[int]] = {}
    for i, prompt in enumerate(prompts):
        key = (len(prompt.point_coords), prompt.box is None, prompt.mask_input is None)
        groups.setdefault(key, []).append(i)
    return list(groups.values())


def _decoder_input(prompts: Sequence[Prompt], embedded: Embedded) -> DecoderInput:
    """Prompts of one group in the decoder's frame."""
    segmenter, first = embedded.model.segmenter, prompts[0]
    side = 4 * segmenter.embedding_size
    masks = [answers.logits_from_base64(p.mask_input, side) for p in prompts if p.mask_input is not None]
    has_points = bool(first.point_coords)
    try:
        prepared = prepare(
            [p.point_coords for p in prompts] if has_points else None,
            [p.point_labels for p in prompts] if has_points else None,
            [p.box for p in prompts if p.box] if first.box else None,
            torch.stack(masks).numpy() if masks else None,
            size=embedded.entry.size,
            segmenter=segmenter,
            batched=True,
        )
    except InputError as error:
        raise invalid(str(error)) from None
    return prepared.point_coords, prepared.point_labels, prepared.mask_input


def _answers(request: PredictRequest, embedded: Embedded, logits: Tensor, ious: Tensor) -> list[list[dict[str, Any]]]:
    upscaling = embedded.model.upscaling(embedded.entry.size)
    own = {"upscaling": upscaling, "which": request.masks, "form": request.format, "low_res": request.low_res_masks}
    with torch.inference_mode():
        return [answers.answer(prompt, scores, **own) for prompt, scores in zip(logits, ious, strict=True)]  # type: ignore[arg-type]
