"""Latency of a model: encoder alone, decoder for one prompt, and end to end with pre- and post-processing."""

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
    """Settings of latency and memory measurements."""

    warmup: Annotated[int, Field(ge=0)] = 5
    """Untimed calls before the first sample."""
    runs: Annotated[int, Field(ge=0)] = 40
    """Samples per part; 0 disables latency and memory, so that results are reproducible byte for byte."""
    max_foreign_load: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Largest share of the CPUs that other processes may use during a sample."""
    batch: Annotated[int, Field(ge=1)] = 4
    """Images per batch for the throughput."""
    threads: Annotated[int, Field(ge=1)] = 2
    """CPU threads of the model."""


def measure_latency(
    segmenter: Segmenter,
    config: LatencyConfig,
    image: UInt8[np.ndarray, "h w 3"],
    box: Float[np.ndarray, "4"],
) -> dict[str, Timing]:
    """Time a model on a real image and one instance's box.

    Args:
        segmenter: The model.
        config: Settings, with ``runs`` of at least 1.
        image: RGB.
        box: xyxy in pixels of the image.

    Returns:
        ``encoder``: one forward pass. ``decoder``: one box. ``end_to_end``: `Predictor.set_image` and
        `Predictor.predict` of the box, including all resizing. ``throughput``: the same on a batch of ``batch`` images,
        one box each.
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
        # The inputs of encoder and decoder are on their device: copies are part of the other two only.
        pixels, coords, labels = (tensor.to(embedding.device) for tensor in (pixels, coords, labels))
        # CUDA events time encoder and decoder; the other two return host arrays, so wall time includes all their work.
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
