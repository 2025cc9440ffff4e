"""A loaded model and its calls, each for a batch."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.core.artifact import Card
from pipeline.core.errors import InputError
from pipeline.data.scenes import render
from pipeline.ops.geometry import Size, to_input
from pipeline.runtime import Predictor, Segmenter, load
from pipeline.runtime.everything.upscaling import Upscaling
from pipeline.runtime.self_check import SELF_CHECK, repeat
from pipeline.serve.source import Source

_SIDE = 96

DecoderInput = tuple[Float[Tensor, "_ n 2"], Float[Tensor, "_ n"], Float[Tensor, "_ 1 m m"] | None]
DecoderOutput = tuple[Float[Tensor, "_ 4 m m"], Float[Tensor, "_ 4"]]


@dataclass(frozen=True, eq=False)
class Model:
    """A model that passed its self-check."""

    segmenter: Segmenter
    card: Card
    version: str
    check: str
    """What the self-check measured."""
    files: "TemporaryDirectory[str] | None" = None
    """Deleted with the model."""

    @classmethod
    def fetch(cls, source: Source, version: str, device: str | None, threads: int | None) -> "Model":
        """Load a version, and repeat its self-check.

        Raises:
            InputError: It cannot be fetched or loaded, or does not pass.
        """
        files = TemporaryDirectory(prefix="serve-")
        directory = source.fetch(version, Path(files.name))
        segmenter = load(directory, device, threads)
        return cls(segmenter, Card.read(directory), version, self_check(segmenter, directory), files)

    @property
    def digest(self) -> str:
        """Digest of the artifact."""
        return self.card.digest

    @cached_property
    def upscaling(self) -> Callable[[Size], Upscaling]:
        """Upscaling of logits to images of a size; those used last are kept."""
        segmenter = self.segmenter
        return lru_cache(maxsize=64)(lambda size: Upscaling(size, segmenter))

    def described(self) -> dict[str, str]:
        """The model as answers name it."""
        return {
            "name": str(self.card.model),
            "precision": str(self.card.precision),
            "version": self.version,
            "digest": self.digest,
        }

    @torch.inference_mode()
    def encode(self, images: Sequence[Float[Tensor, "3 s s"]]) -> list[Float[Tensor, "1 256 g g"]]:
        """Embeddings of images, each in memory of its own."""
        embeddings = self.segmenter.encode(torch.stack(list(images)))
        return [embedding[None].clone() for embedding in embeddings]

    @torch.inference_mode()
    def decode(self, embedding: Float[Tensor, "1 256 g g"], parts: Sequence[DecoderInput]) -> list[DecoderOutput]:
        """Logits and predicted IoUs of prompts on one image; all have equally many points, and a mask or none."""
        coords, labels = torch.cat([part[0] for part in parts]), torch.cat([part[1] for part in parts])
        masks = None if parts[0][2] is None else torch.cat([part[2] for part in parts if part[2] is not None])
        logits, ious = (tensor.cpu() for tensor in self.segmenter.decode(embedding, coords, labels, masks))
        counts = [len(part[0]) for part in parts]
        return list(zip(logits.split(counts), ious.split(counts), strict=True))


def self_check(segmenter: Segmenter, directory: Path) -> str:
    """Repeat an engine's self-check; other artifacts predict one mask of a rendered scene.

    Returns:
        What was measured, in one line.

    Raises:
        InputError: The model does not pass.
    """
    if (directory / SELF_CHECK).is_file():
        agreement = repeat(segmenter, directory)
        line = (
            f"embedding cosine {agreement.embedding_cosine:.4f} (at least {agreement.min_cosine:g}), "
            f"mask IoU {agreement.mask_iou:.4f} (at least {agreement.min_mask_iou:g})"
        )
        if not agreement.passes:
            raise InputError(f"the model misses its self-check on this machine: {line}.")
        return line
    predictor, image = Predictor(segmenter), render(np.random.default_rng(0), _SIDE).image
    with torch.inference_mode():
        embedding = segmenter.encode(to_input(image, segmenter.input_size)[None])
        predictor.set_image(image)
        prediction = predictor.predict(box=[_SIDE / 4, _SIDE / 4, _SIDE / 2, _SIDE / 2])
    if not (torch.isfinite(embedding).all() and np.isfinite(prediction.iou_predictions).all()):
        raise InputError("the model misses its self-check: it gives values that are not finite.")
    return "a trial prediction is finite; the artifact has no stored self-check"
