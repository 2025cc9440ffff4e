"""segment-anything's predictor on any runtime.

`Predictor` has the methods of ``segment_anything.SamPredictor`` with the same arguments, shapes and results. In
addition, `Predictor.set_images` encodes several images in one batch, `Predictor.predict` takes batches of prompts, and
prompts are decoded in groups, which bounds memory.
"""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from pipeline.core.errors import InputError
from pipeline.ops.geometry import Size, masks_to_original, resized, to_input
from pipeline.runtime.prompts import Prompts, prepare
from pipeline.runtime.segmenter import Segmenter

PROMPTS_AT_ONCE = 16
"""Prompts decoded together: more is no faster on a CPU, and at full size each takes about 30 MB."""
PROMPTS_AT_ONCE_ON_GPU = 64
"""The same on a GPU, which fewer prompts leave idle; TensorRT engines take as many by default."""
UPSCALED_AT_ONCE = 2**24
"""Values of upscaled logits in memory at once: 64 MiB, or one mask if that is larger."""
FORMATS = ("RGB", "BGR")


class Prediction(NamedTuple):
    """Result of `Predictor.predict`; unpacks like segment-anything's tuple."""

    masks: Bool[np.ndarray, "*p c h w"] | Float[np.ndarray, "*p c h w"]
    """In the original frame; logits if ``return_logits``."""
    iou_predictions: Float[np.ndarray, "*p c"]
    low_res_masks: Float[np.ndarray, "*p c m m"]
    """Logits, usable as ``mask_input`` of another call."""


class Best(NamedTuple):
    """Result of `Predictor.predict_best`."""

    masks: Bool[np.ndarray, "p h w"]
    iou_predictions: Float[np.ndarray, " p"]
    low_res_masks: Float[np.ndarray, "p m m"]


class Predictor:
    """Predicts masks for prompts on images set beforehand. Not thread-safe.

    Args:
        segmenter: From `pipeline.runtime.load`.
    """

    def __init__(self, segmenter: Segmenter) -> None:
        self.segmenter = segmenter
        self.reset_image()

    def reset_image(self) -> None:
        """Forget all images."""
        self._embeddings: Tensor | None = None
        self._sizes: list[Size] = []
        self._index = 0

    def set_image(self, image: NDArray[Any], image_format: str = "RGB") -> None:
        """Encode an image for subsequent calls of `predict`.

        Args:
            image: ``(H, W, 3)``, values in [0, 255].
            image_format: ``RGB`` or ``BGR``.

        Raises:
            InputError: ``image`` is not such an image.
        """
        self.set_images([image], image_format)

    def set_images(self, images: Sequence[NDArray[Any]], image_format: str = "RGB") -> None:
        """Encode images ``(H, W, 3)`` of any sizes in one batch; the first is current, `select` chooses another.

        Raises:
            InputError: ``images`` is empty or has an invalid image.
        """
        if len(images) == 0:
            raise InputError("set_images needs at least one image; it was given none.")
        if image_format not in FORMATS:
            raise InputError(f"image_format must be one of {', '.join(FORMATS)}, not {image_format!r}.")
        pixels = [_rgb(image, image_format) for image in images]
        self.reset_image()
        side = self.segmenter.input_size
        self._embeddings = self.segmenter.encode(torch.stack([to_input(image, side) for image in pixels]))
        self._sizes = [(image.shape[0], image.shape[1]) for image in pixels]

    def select(self, index: int) -> None:
        """Select one of `set_images`' images as the current one.

        Raises:
            InputError: ``index`` is out of range.
        """
        if not 0 <= index < len(self._sizes):
            raise InputError(f"there is no image {index}: {len(self._sizes)} are set, counted from 0.")
        self._index = index

    @property
    def is_image_set(self) -> bool:
        """Whether `predict` may be called."""
        return self._embeddings is not None

    @property
    def features(self) -> Float[Tensor, "1 256 g g"] | None:
        """The current image's embedding, or None."""
        return None if self._embeddings is None else self._embeddings[self._index : self._index + 1]

    @property
    def original_size(self) -> Size:
        """Height and width of the current image, in pixels."""
        self._require_image()
        return self._sizes[self._index]

    @property
    def input_size(self) -> Size:
        """Height and width of the current image in the prompt frame, without padding."""
        return resized(self.original_size, self.segmenter.image_size)

    def get_image_embedding(self) -> Float[Tensor, "1 256 g g"]:
        """The current image's embedding.

        Raises:
            RuntimeError: No image is set.
        """
        return self._require_image()

    def predict(
        self,
        point_coords: ArrayLike | None = None,
        point_labels: ArrayLike | None = None,
        box: ArrayLike | None = None,
        mask_input: ArrayLike | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> Prediction:
        """Masks for one prompt, or for a batch of P prompts, on the current image.

        In a batch, every argument has a leading axis P: points ``(P, N, 2)`` with labels ``(P, N)``, boxes ``(P, 4)``,
        masks ``(P, 1, m, m)``. A single box of shape ``(1, 4)`` is one prompt, as in segment-anything; `predict_batch`
        treats it as a batch of one.

        Args:
            point_coords: x and y in pixels of the original image.
            point_labels: 1 foreground, 0 background, -1 ignored.
            box: x0, y0, x1, y1 in pixels of the original image.
            mask_input: Logits of an earlier call (its third result), side m = 4g.
            multimask_output: Return three masks per prompt, for ambiguous prompts, instead of one.
            return_logits: Return logits instead of masks; the threshold is 0.

        Returns:
            Masks ``(C, H, W)``, predicted IoUs ``(C,)``, low-resolution logits ``(C, m, m)``; for a batch, each with a
            leading axis P.

        Raises:
            InputError: A prompt's shape or value is wrong.
            RuntimeError: No image is set.
        """
        self._require_image()
        arrays = (point_coords, point_labels, box, mask_input)
        prompts = prepare(*arrays, size=self.original_size, segmenter=self.segmenter)
        prediction = self._predict(prompts, multimask_output, return_logits)
        return prediction if prompts.batched else Prediction(*(array[0] for array in prediction))

    def predict_batch(
        self,
        point_coords: ArrayLike | None = None,
        point_labels: ArrayLike | None = None,
        boxes: ArrayLike | None = None,
        mask_input: ArrayLike | None = None,
        multimask_output: bool = True,
        return_logits: bool = False,
    ) -> Prediction:
        """`predict` for a batch of P >= 0 prompts; every result has a leading axis P.

        Raises:
            InputError: A prompt's shape or value is wrong.
            RuntimeError: No image is set.
        """
        prompts = self._batch(point_coords, point_labels, boxes, mask_input)
        return self._predict(prompts, multimask_output, return_logits)

    def predict_best(
        self,
        point_coords: ArrayLike | None = None,
        point_labels: ArrayLike | None = None,
        boxes: ArrayLike | None = None,
        mask_input: ArrayLike | None = None,
    ) -> Best:
        """For each of P prompts, the one of its three masks with the highest predicted IoU; the first of equal ones.

        The masks equal those of `predict_batch`. The others are not upscaled, which saves most of the time spent
        outside the decoder.

        Raises:
            InputError: A prompt's shape or value is wrong.
            RuntimeError: No image is set.
        """
        prompts = self._batch(point_coords, point_labels, boxes, mask_input)
        count, side = len(prompts.point_coords), 4 * self.segmenter.embedding_size
        masks = np.empty((count, 1, *self.original_size), dtype=bool)
        ious, low_res = np.empty(count, np.float32), np.empty((count, side, side), np.float32)
        for part, logits, scores in self._decode(prompts):
            values = scores[:, 1:].cpu().numpy()
            chosen, rows = values.argmax(axis=1), np.arange(len(values))
            best = logits[torch.from_numpy(rows), torch.from_numpy(1 + chosen)][:, None]
            ious[part], low_res[part] = values[rows, chosen], best[:, 0].cpu().numpy()
            self._upscale(best, masks[part])
        return Best(masks[:, 0], ious, low_res)

    def _batch(self, *arrays: ArrayLike | None) -> Prompts:
        self._require_image()
        return prepare(*arrays, size=self.original_size, segmenter=self.segmenter, batched=True)

    def _predict(self, prompts: Prompts, multimask_output: bool, return_logits: bool) -> Prediction:
        count, tokens = len(prompts.point_coords), slice(1, 4) if multimask_output else slice(0, 1)
        channels, side = tokens.stop - tokens.start, 4 * self.segmenter.embedding_size
        masks = np.empty((count, channels, *self.original_size), dtype=np.float32 if return_logits else bool)
        ious = np.empty((count, channels), dtype=np.float32)
        low_res = np.empty((count, channels, side, side), dtype=np.float32)
        for part, logits, scores in self._decode(prompts):
            logits = logits[:, tokens]
            ious[part], low_res[part] = scores[:, tokens].cpu().numpy(), logits.cpu().numpy()
            self._upscale(logits, masks[part])
        return Prediction(masks, ious, low_res)

    def _decode(self, prompts: Prompts) -> Iterator[tuple[slice, Float[Tensor, "p 4 m m"], Float[Tensor, "p 4"]]]:
        """Decode a few prompts at a time: their slice among all prompts, logits and predicted IoUs."""
        embedding = self._require_image()
        step = PROMPTS_AT_ONCE if embedding.device.type == "cpu" else PROMPTS_AT_ONCE_ON_GPU
        for start in range(0, len(prompts.point_coords), step):
            part = slice(start, start + step)
            mask_input = None if prompts.mask_input is None else prompts.mask_input[part]
            yield (
                part,
                *self.segmenter.decode(embedding, prompts.point_coords[part], prompts.point_labels[part], mask_input),
            )

    def _upscale(self, logits: Float[Tensor, "p c m m"], masks: np.ndarray) -> None:
        """Upscale logits to the original frame and write masks, or logits, into ``masks``."""
        flat, targets = logits.flatten(0, 1)[:, None], masks.reshape(-1, *masks.shape[2:])
        largest = max(self.segmenter.image_size**2, masks.shape[2] * masks.shape[3])
        step = max(1, UPSCALED_AT_ONCE // largest)
        for start in range(0, len(flat), step):
            part = slice(start, start + step)
            upscaled = masks_to_original(flat[part], self.original_size, self.segmenter.image_size)[:, 0]
            targets[part] = (upscaled if masks.dtype == np.float32 else upscaled > 0).cpu().numpy()

    def _require_image(self) -> Tensor:
        features = self.features
        if features is None:
            raise RuntimeError("No image is set: call set_image(...) first.")
        return features


def _rgb(image: NDArray[Any], image_format: str) -> UInt8[np.ndarray, "h w 3"]:
    """Check an image and convert it to RGB.

    Raises:
        InputError: It is not a uint8 array of three channels, or has no pixels.
    """
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        actual = f"{image.dtype} of shape {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise InputError(f"an image must be a uint8 array of shape (H, W, 3), not {actual}: convert it first.")
    if 0 in image.shape:
        raise InputError(f"an image must have pixels; its shape is {image.shape}.")
    return np.ascontiguousarray(image[..., ::-1] if image_format == "BGR" else image)
