"""Calibration and held-out images of a quantization, and the comparison of a quantized encoder with fp32."""

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float32
from onnxruntime.quantization import CalibrationDataReader
from torch import Tensor

from pipeline.core.artifact import Calibration
from pipeline.core.errors import InputError, Refused
from pipeline.core.progress import counter, progress
from pipeline.data.shards import Sample, Shards
from pipeline.models.sam import Sam
from pipeline.ops.geometry import to_input
from pipeline.quantize.config import QuantizeConfig
from pipeline.quantize.task import likelihood
from pipeline.runtime.onnxruntime import open_session

SPLIT = "calibration"

Feeds = Mapping[str, Any]
"""An ONNX file's inputs by name, as arrays."""


@runtime_checkable
class SearchData(Protocol):
    """What a search of scales reads of the images: a model's inputs, and the task's loss of its outputs."""

    @property
    def chosen(self) -> Sequence[int]:
        """Indices of the images to calibrate on."""

    def feeds(self, index: int) -> Feeds:
        """The model's inputs by name."""

    def loss(self, outputs: Sequence[Tensor], index: int, generator: torch.Generator) -> Tensor:
        """The task's loss of the model's outputs."""


class CalibrationData:
    """Data that a precision may use. Images are chosen at first use, because fp32 needs none.

    Args:
        config: Number of images, and the seed that chooses them.
        sam: The student, for its loss.
        shards: The calibration split.
    """

    def __init__(self, config: QuantizeConfig, sam: Sam, shards: Shards) -> None:
        self.sam, self.shards = sam, shards
        self._config = config

    @cached_property
    def _order(self) -> list[int]:
        config, shards = self._config, self.shards
        if shards.split != SPLIT:
            raise InputError(
                f"quantize calibrates on the split {SPLIT!r}, not on {shards.split!r}: images used for calibration "
                "must not be used for evaluation."
            )
        asked = config.calibration_images + config.holdout_images
        if len(shards) < asked:
            raise InputError(
                f"{shards.directory} has {len(shards)} calibration images; quantize.calibration_images and "
                f"holdout_images ask for {config.calibration_images} + {config.holdout_images}: lower these, or "
                "prepare more."
            )
        return [int(i) for i in np.random.default_rng(config.seed).permutation(len(shards))[:asked]]

    @property
    def chosen(self) -> Sequence[int]:
        """Indices of the images to calibrate on.

        Raises:
            InputError: The split is not the calibration split, or has too few images.
        """
        return self._order[: self._config.calibration_images]

    @property
    def held_out(self) -> Sequence[int]:
        """Indices of further images, on which a result is compared. Raises as `chosen`."""
        return self._order[self._config.calibration_images :]

    def sample(self, index: int) -> Sample:
        """Read an image with its masks."""
        return self.shards[index]

    def pixels(self, index: int) -> Float32[np.ndarray, "1 3 s s"]:
        """Read an image as the encoder's input."""
        return to_input(self.shards[index].image, self.sam.input_size)[None].numpy()

    def feeds(self, index: int) -> Feeds:
        """The encoder's inputs by name."""
        return {"image": self.pixels(index)}

    def loss(self, outputs: Sequence[Tensor], index: int, generator: torch.Generator) -> Tensor:
        """The task's loss of an embedding, for `pipeline.quantize.scales.search`. See `likelihood`."""
        return likelihood(self.sam, outputs[0], self.sample(index), generator)

    def card(self) -> Calibration:
        """Number, seed and digest of the calibration images, for the artifact's card."""
        total = hashlib.sha256()
        for index in self.chosen:
            image = np.ascontiguousarray(self.shards[index].image)
            total.update(f"{image.shape}".encode() + image.tobytes())
        return Calibration(images=len(self.chosen), seed=self._config.seed, digest=total.hexdigest())


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Inputs in the interface of ONNX Runtime's quantizers."""

    def __init__(self, feeds: Callable[[int], Feeds], indices: Sequence[int]) -> None:
        self._feeds, self._indices = feeds, indices
        self._bar = counter("calibrate", "image", len(indices))
        self.set_range(0, len(indices))

    def __len__(self) -> int:
        return len(self._indices)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Continue with a range of the images."""
        self._next, self._end = start_index, end_index

    def rewind(self) -> None:
        """Restart from the first image."""
        self.set_range(0, len(self._indices))

    def get_first(self) -> Feeds:
        """Return the first input without advancing."""
        return self._feeds(self._indices[0])

    def get_next(self) -> Feeds | None:
        """Return the next input, or None after the last."""
        if self._next >= self._end:
            if self._end == len(self._indices):
                self._bar.close()
            return None
        self._next += 1
        self._bar.update()
        return self._feeds(self._indices[self._next - 1])


def agreement(reference: Path, lowered: Path, data: CalibrationData) -> dict[str, float]:
    """Compute mean and minimum cosine, and mean relative L1 difference, of embeddings on held-out images.

    Int8 is computed in floating point, so that the figures do not depend on the processor's int8 arithmetic.
    """
    cosines, differences = [], []
    sessions = [open_session(path, simulate=True) for path in (reference, lowered)]
    for index in progress(data.held_out, "compare", "image"):
        feeds = data.feeds(index)
        a, b = (session.run(None, feeds)[0].ravel().astype(np.float64) for session in sessions)
        cosines.append(float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-30)))
        differences.append(float(np.abs(a - b).sum() / max(np.abs(a).sum(), 1e-30)))
    return {
        "embedding_cosine": float(np.mean(cosines)),
        "embedding_cosine_min": min(cosines),
        "embedding_relative_l1": float(np.mean(differences)),
    }


def gate(config: QuantizeConfig, precision: str, figures: Mapping[str, float]) -> None:
    """Refuse an encoder whose embeddings differ too much from fp32.

    Raises:
        Refused: The cosine is below ``config.min_cosine``, or not finite.
    """
    cosine = figures["embedding_cosine"]
    if not cosine >= config.min_cosine:
        raise Refused(
            "quantize.min_cosine",
            f"the cosine of {precision} and fp32 embeddings is {cosine:.4f}, below quantize.min_cosine "
            f"{config.min_cosine}: try another quantize.method or calibration, more images, or quantize.keep.",
            value=cosine,
            limit=config.min_cosine,
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Silence quantizers, which print, and advise steps that the export has already done."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # ModelOpt sets the levels of its loggers anew
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            yield
    finally:
        logging.disable(before)
