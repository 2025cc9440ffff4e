"""Which images calibrate, how they are told apart from all others, and how a lowered file is compared on them."""

import hashlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cached_property
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32
from onnxruntime.quantization import CalibrationDataReader

from pipeline.core.artifact import Calibration
from pipeline.core.errors import InputError, Refused
from pipeline.core.progress import counter, progress
from pipeline.data.shards import Sample, Shards
from pipeline.models.sam import Sam
from pipeline.ops.geometry import to_input
from pipeline.quantize.config import QuantizeConfig
from pipeline.runtime.onnxruntime import open_session

SPLIT = "calibration"

Feeds = Mapping[str, Any]
"""An ONNX file's inputs by name, as arrays."""


class CalibrationData:
    """What a precision may look at. Images are chosen when they are first asked for: fp32 needs none.

    Args:
        config: How many images, and the seed that chooses them.
        sam: The student, for the loss of its task.
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
                f"quantize calibrates on the split {SPLIT!r} only, not on {shards.split!r}, whose images would be seen "
                "before they are measured on: hand that one over."
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
        """Indices of other images, on which a result is compared. Errors are those of `chosen`."""
        return self._order[self._config.calibration_images :]

    def sample(self, index: int) -> Sample:
        """An image with its masks."""
        return self.shards[index]

    def pixels(self, index: int) -> Float32[np.ndarray, "1 3 s s"]:
        """An image as the encoder reads it."""
        return to_input(self.shards[index].image, self.sam.input_size)[None].numpy()

    def feeds(self, index: int) -> Feeds:
        """The encoder's input."""
        return {"image": self.pixels(index)}

    def card(self) -> Calibration:
        """Number, seed and digest of the calibration images, for the artifact's card."""
        total = hashlib.sha256()
        for index in self.chosen:
            image = np.ascontiguousarray(self.shards[index].image)
            total.update(f"{image.shape}".encode() + image.tobytes())
        return Calibration(images=len(self.chosen), seed=self._config.seed, digest=total.hexdigest())


class Reader(CalibrationDataReader):  # type: ignore[misc]
    """Inputs as quantizers ask for them: a range of them, or one after the other, or all anew."""

    def __init__(self, feeds: Callable[[int], Feeds], indices: Sequence[int]) -> None:
        self._feeds, self._indices = feeds, indices
        self._bar = counter("calibrate", "image", len(indices))
        self.set_range(0, len(indices))

    def __len__(self) -> int:
        return len(self._indices)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Go on with these."""
        self._next, self._end = start_index, end_index

    def rewind(self) -> None:
        """Start again."""
        self.set_range(0, len(self._indices))

    def get_first(self) -> Feeds:
        """The first, without going on."""
        return self._feeds(self._indices[0])

    def get_next(self) -> Feeds | None:
        """The next, or None after the last."""
        if self._next >= self._end:
            if self._end == len(self._indices):
                self._bar.close()
            return None
        self._next += 1
        self._bar.update()
        return self._feeds(self._indices[self._next - 1])


def agreement(reference: Path, lowered: Path, data: CalibrationData) -> dict[str, float]:
    """Mean and least cosine, and mean relative L1 difference, of embeddings on held-out images.

    Int8 is simulated in floating point, so that the figures do not depend on the processor's int8 arithmetic.
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
    """Refuse an encoder that is too far from fp32.

    Raises:
        Refused: It is, or its embeddings are not finite.
    """
    cosine = figures["embedding_cosine"]
    if not cosine >= config.min_cosine:
        raise Refused(
            "quantize.min_cosine",
            f"{precision} embeddings agree with fp32 ones to a cosine of {cosine:.4f} only, quantize.min_cosine asks "
            f"for {config.min_cosine}: try another quantize.method or calibration, more images, or quantize.keep.",
            value=cosine,
            limit=config.min_cosine,
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Quantizers print, and advise what the export has already done: keep both off the screen."""
    before = logging.root.manager.disable
    logging.disable(logging.CRITICAL)  # ModelOpt sets the levels of its loggers anew
    try:
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):
            yield
    finally:
        logging.disable(before)
