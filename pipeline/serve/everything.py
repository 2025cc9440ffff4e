"""Everything mode as a stream of lines, interleaved with other requests on the model thread."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from pycocotools import mask as coco_mask
from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send
from torch import Tensor

from pipeline.ops import masks
from pipeline.runtime import EverythingSettings, Predictor, everything
from pipeline.serve import answers, images
from pipeline.serve.problems import Problem, busy, timed_out
from pipeline.serve.schemas import EverythingRequest
from pipeline.serve.service import LOG, Embedded, Service

_PATIENCE = 10
"""Times the time-out of other requests."""


class _Stopped(Exception):  # noqa: N818 - not an error
    """Nobody waits for the result."""


class _Scheduled:
    """A `Segmenter` of one image whose calls go through the scheduler of the event loop, from another thread."""

    def __init__(self, service: Service, embedded: Embedded, events: "asyncio.Queue[dict[str, Any] | None]") -> None:
        segmenter = embedded.model.segmenter
        self.image_size, self.input_size = segmenter.image_size, segmenter.input_size
        self.embedding_size = segmenter.embedding_size
        self.stopped = False
        self._service, self._embedded, self._events, self._prompts = service, embedded, events, 0
        self._loop = asyncio.get_running_loop()

    def encode(self, images: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b 256 g g"]:
        """The embedding that was computed before; there is one image and there are no crops."""
        return self._embedded.embedding

    def decode(
        self,
        image_embedding: Float[Tensor, "1 256 g g"],
        point_coords: Float[Tensor, "p n 2"],
        point_labels: Float[Tensor, "p n"],
        mask_input: Float[Tensor, "p 1 m m"] | None = None,
    ) -> tuple[Float[Tensor, "p 4 m m"], Float[Tensor, "p 4"]]:
        """See `pipeline.runtime.Segmenter.decode`."""
        if self.stopped:
            raise _Stopped
        part = (point_coords.clone(), point_labels.clone(), mask_input)
        result = asyncio.run_coroutine_threadsafe(self._service.decode(self._embedded, part), self._loop).result()
        self._prompts += len(point_coords)
        self.send({"type": "progress", "prompts": self._prompts})
        return result

    def send(self, event: dict[str, Any] | None) -> None:
        """Hand an event to the stream."""
        self._loop.call_soon_threadsafe(self._events.put_nowait, event)


class _Answer(StreamingResponse):
    """A stream that says when it ended, also if the client left before it began."""

    def __init__(self, lines: AsyncIterator[bytes], ended: Callable[[], None]) -> None:
        super().__init__(lines, media_type="application/x-ndjson")
        self._ended = ended

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._ended()


class Everything:
    """Answers requests for everything; one runs at a time.

    Args:
        service: Gives embeddings and decodes prompts.
    """

    def __init__(self, service: Service) -> None:
        self._service, self._in_progress = service, 0
        self._thread = ThreadPoolExecutor(1, "everything")

    async def answer(self, request: EverythingRequest) -> StreamingResponse:
        """A stream of lines.

        Raises:
            Problem: Too many are in progress, or see `Service.embed`.
        """
        service, limit = self._service, self._service.settings.max_everything
        if self._in_progress >= limit:
            raise busy(f"{limit} requests for everything are in progress.")
        self._in_progress += 1
        try:
            raw = None if request.image is None else await service.in_thread(images.from_base64, request.image)
            embedded = await service.embed(request.image_id, raw)
        except BaseException:
            self._leave()
            raise
        return _Answer(self._lines(request, embedded), self._leave)

    def _leave(self) -> None:
        self._in_progress -= 1

    async def _lines(self, request: EverythingRequest, embedded: Embedded) -> AsyncIterator[bytes]:
        events = asyncio.Queue[dict[str, Any] | None]()
        segmenter = _Scheduled(self._service, embedded, events)
        work = asyncio.get_running_loop().run_in_executor(self._thread, self._run, request, embedded, segmenter)
        seconds = _PATIENCE * self._service.settings.timeout_s
        try:
            yield _line({"type": "image", "image_id": embedded.entry.image_id, "size": embedded.entry.size})
            try:
                async with asyncio.timeout(seconds):
                    while (event := await events.get()) is not None:
                        yield _line(event)
            except TimeoutError:
                yield _line({"type": "error", "detail": timed_out(seconds).detail})
        finally:
            segmenter.stopped = True
            work.cancel()  # if it has not begun

    def _run(self, request: EverythingRequest, embedded: Embedded, segmenter: _Scheduled) -> None:
        """Compute all masks and send them; in the thread of this class."""
        try:
            count = 0
            for mask in self._masks(request, embedded, segmenter):
                if segmenter.stopped:
                    return
                count += 1
                segmenter.send({"type": "mask", "mask": mask})
            segmenter.send({"type": "end", "masks": count})
        except _Stopped:
            return
        except Problem as problem:
            segmenter.send({"type": "error", "detail": problem.detail})
        except Exception:  # noqa: BLE001 - the log has it
            LOG.exception("everything failed")
            segmenter.send({"type": "error", "detail": "the server failed; its log has the reason."})
        finally:
            segmenter.send(None)

    def _masks(self, request: EverythingRequest, embedded: Embedded, segmenter: _Scheduled) -> Any:
        settings = EverythingSettings(
            points_per_side=request.points_per_side,
            points_per_batch=self._service.settings.max_batch,
            pred_iou_thresh=request.pred_iou_thresh,
            stability_score_thresh=request.stability_score_thresh,
            box_nms_thresh=request.box_nms_thresh,
            min_mask_region_area=request.min_mask_region_area,
            output_mode="coco_rle",
        )
        size = embedded.entry.size
        with torch.inference_mode():
            records = everything(Predictor(segmenter), _blank(size), request.mode, settings)
        for record in records:
            rle = record["segmentation"]
            form = request.format
            yield {
                "segmentation": rle if form == "rle" else answers.segmentation(masks.decode(rle), form),
                "bbox": [float(v) for v in coco_mask.toBbox({"size": rle["size"], "counts": rle["counts"].encode()})],
                "area": record["area"],
                "predicted_iou": round(record["predicted_iou"], 6),
                "stability_score": round(record["stability_score"], 6),
                "point_coords": record["point_coords"],
            }


def _blank(size: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    """Pixels that nobody looks at, without memory of their own: the image is encoded already."""
    return np.broadcast_to(np.zeros(3, np.uint8), (*size, 3))


def _line(event: dict[str, Any]) -> bytes:
    return json.dumps(event, allow_nan=False, separators=(",", ":")).encode() + b"\n"
