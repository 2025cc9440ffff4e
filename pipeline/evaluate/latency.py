"""Latency of a model as its users meet it: encoder alone, decoder for one prompt, and both with all around them."""

from collections.abc import Callable, Mapping
from typing import Annotated, Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from pydantic import Field

from pipeline.core.config import Config
from pipeline.evaluate.timing import Clock, Timing, cuda_events, measure, wall
from pipeline.ops import geometry
from pipeline.ops.point_labels import BOX_CORNERS
from pipeline.runtime import Predictor, Segmenter


class LatencyConfig(Config):
    """How latency and memory are measured."""

    warmup: Annotated[int, Field(ge=0)] = 5
    """Calls before the first that is timed."""
    runs: Annotated[int, Field(ge=0)] = 40
    """Samples of each part; 0 measures neither latency nor memory, so that the result repeats byte for byte."""
    max_foreign_load: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of the processors that other processes may use while a sample is taken."""
    batch: Annotated[int, Field(ge=1)] = 4
    """Images encoded at once for the throughput."""
    threads: Annotated[int, Field(ge=1)] = 2
    """Processor threads the model may use."""


def measure_latency(
    segmenter: Segmenter,
    config: LatencyConfig,
    image: UInt8[np.ndarray, "h w 3"],
    box: Float[np.ndarray, "4"],
) -> dict[str, Timing]:
    """Time a model on a real image and the box of one of its instances.

    Args:
        segmenter: The model.
        config: ``runs`` of at least 1.
        image: RGB.
        box: xyxy in the original frame.

    Returns:
        ``encoder``: one forward pass. ``decoder``: one box. ``end_to_end``: `Predictor.set_image` and
        `Predictor.predict` of the box, with resizing before and after. ``throughput``: the same on ``batch`` images at
        once, a box on each.
    """
    predictor = Predictor(segmenter)
    side, frame = segmenter.input_size, segmenter.image_size
    pixels = geometry.to_input(image, side)[None]
    corners = geometry.boxes_to_frame(box[None], (image.shape[0], image.shape[1]), frame)
    coords, labels = torch.from_numpy(corners.reshape(1, 2, 2)), torch.tensor([BOX_CORNERS], dtype=torch.float32)

    def end_to_end() -> None:
        predictor.set_image(image)
        predictor.predict(box=box, multimask_output=True)

    def throughput() -> None:
        predictor.set_images([image] * config.batch)
        for index in range(config.batch):
            predictor.select(index)
            predictor.predict(box=box, multimask_output=True)

    with torch.inference_mode():
        embedding = segmenter.encode(pixels)
        # What ends on a GPU is timed there; the other two return arrays of the host, so they have finished.
        clock = cuda_events if embedding.is_cuda else wall
        parts: Mapping[str, tuple[Callable[[], object], Clock]] = {
            "encoder": (lambda: segmenter.encode(pixels), clock),
            "decoder": (lambda: segmenter.decode(embedding, coords, labels, None), clock),
            "end_to_end": (end_to_end, wall),
            "throughput": (throughput, wall),
        }
        settings: Mapping[str, Any] = {
            "warmup": config.warmup,
            "runs": config.runs,
            "max_foreign_load": config.max_foreign_load,
        }
        return {name: measure(part, clock=clock, **settings) for name, (part, clock) in parts.items()}
