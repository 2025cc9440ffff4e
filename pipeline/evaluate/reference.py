"""Slow reference implementation of the published evaluation, used to verify `pipeline.evaluate.prompting`.

Source: EfficientViT-SAM, ``eval_efficientvit_sam_model.py`` and ``sam_eval_utils.py`` (the clicker is RITM's). A
``segment_anything.SamPredictor`` runs prompt by prompt: a box, then each number of clicks from scratch. All three masks
are resized to the image before one is selected; distance transforms cover the whole image. Differences: squared
distances are rounded to integers before comparison, since OpenCV's last bit varies between calls and would break ties
between equally distant pixels; and the previous mask can be fed back.
"""

from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float
from segment_anything import SamPredictor
from segment_anything.modeling import Sam as PublishedSam
from torch import Tensor, nn

from pipeline.evaluate.prompting import Answer
from pipeline.models.sam import Sam
from pipeline.ops import masks
from pipeline.ops.geometry import Size, resized
from pipeline.runtime import Segmenter

CLICKS = {"click": 1, "click3": 3, "click5": 5}

Mask = Bool[np.ndarray, "h w"]


def answers(predictor: SamPredictor, truth: Mask, *, with_mask_input: bool) -> list[Answer]:
    """Predict one instance of the current image from every prompt.

    Args:
        predictor: From `predictor_of`, with the image set.
        truth: The instance's mask, not empty.
        with_mask_input: Predict also with the previous mask as a prompt.
    """
    results = [Answer("box", *_ask(predictor, box=np.array(masks.box(truth), np.float32))[:2])]
    for name, count in CLICKS.items():
        results.append(Answer(name, *_click(predictor, truth, count, feed=False)))
        if with_mask_input and count > 1:
            results.append(Answer(f"{name}_fed", *_click(predictor, truth, count, feed=True)))
    return results


def predictor_of(sam: Sam, segmenter: Segmenter | None = None) -> SamPredictor:
    """Wrap a model in segment-anything's predictor, without an image encoder.

    Args:
        sam: Provides prompt encoder and mask decoder, which are segment-anything's modules.
        segmenter: Replaces both, still prompt by prompt. Matrix products in another order differ in the last bits,
            which can flip a choice between nearly equal predicted IoUs; sharing the segmenter avoids that.
    """
    if segmenter is None:
        published = PublishedSam(_Size(sam.image_size), sam.prompt_encoder, sam.mask_decoder)
    else:
        published = PublishedSam(_Size(sam.image_size), _Points(), _Decoder(segmenter))
    return SamPredictor(published.eval())


def set_embedding(predictor: SamPredictor, embedding: Float[Tensor, "1 256 g g"], size: Size) -> None:
    """Set a precomputed image embedding, as ``SamPredictor.set_image`` would."""
    predictor.reset_image()
    predictor.features, predictor.original_size = embedding, size
    predictor.input_size = resized(size, predictor.model.image_encoder.img_size)
    predictor.is_image_set = True


def _ask(predictor: SamPredictor, **prompt: Any) -> tuple[Mask, float, np.ndarray]:
    candidates, values, low_res = predictor.predict(multimask_output=True, **prompt)
    best = int(values.argmax())
    return candidates[best], float(values[best]), low_res[best]


def _click(predictor: SamPredictor, truth: Mask, count: int, *, feed: bool) -> tuple[Mask, float]:
    """Predict from ``count`` successive clicks; each call gets all clicks so far."""
    clicker, mask, value, low_res = _Clicker(truth), np.zeros_like(truth), 0.0, None
    for _ in range(count):
        clicker.click(mask)
        mask_input = low_res[None] if feed and low_res is not None else None
        prompt = {"point_coords": np.array(clicker.points), "point_labels": np.array(clicker.labels)}
        mask, value, low_res = _ask(predictor, **prompt, mask_input=mask_input)
    return mask, value


class _Clicker:
    """RITM's clicker on whole images."""

    def __init__(self, truth: Mask) -> None:
        self.points, self.labels = list[tuple[int, int]](), list[int]()
        self._truth, self._free = truth, np.ones_like(truth)

    def click(self, predicted: Mask) -> None:
        """Add the next click, in the largest error region of the predicted mask."""
        false_negative = self._distances(np.logical_and(self._truth, np.logical_not(predicted)))
        false_positive = self._distances(np.logical_and(np.logical_not(self._truth), predicted))
        positive = false_negative.max() > false_positive.max()
        distances = false_negative if positive else false_positive
        rows, columns = np.where(distances == distances.max())
        self._free[rows[0], columns[0]] = False
        self.points.append((int(columns[0]), int(rows[0])))
        self.labels.append(int(positive))

    def _distances(self, errors: Mask) -> np.ndarray:
        padded = np.pad(errors, 1, "constant").astype(np.uint8)
        distances = cv2.distanceTransform(padded, cv2.DIST_L2, 0)[1:-1, 1:-1]
        return np.rint(distances * distances) * self._free


class _Size(nn.Module):
    """Placeholder for the image encoder; the predictor only reads ``img_size``."""

    def __init__(self, image_size: int) -> None:
        super().__init__()
        self.img_size = image_size


class _Points(nn.Module):
    """Prompt encoder that passes raw prompts to `_Decoder`."""

    def forward(
        self, points: tuple[Tensor, Tensor] | None, boxes: Tensor | None, masks: Tensor | None
    ) -> tuple[tuple[Tensor, Tensor], Tensor | None]:
        """Concatenate points, box corners and padding with their labels; return them and the mask."""
        coords, labels = list[Tensor](), list[Tensor]()
        if points is not None:
            coords, labels = [points[0]], [points[1].float()]
            if boxes is None:
                coords.append(torch.zeros(len(points[0]), 1, 2))
                labels.append(-torch.ones(len(points[0]), 1))
        if boxes is not None:
            coords.append(boxes.reshape(-1, 2, 2))
            labels.append(torch.tensor([[2.0, 3.0]]).expand(len(boxes), 2))
        return (torch.cat(coords, dim=1), torch.cat(labels, dim=1)), masks

    def get_dense_pe(self) -> None:
        """Unused: the segmenter has its own positional encoding."""


class _Decoder(nn.Module):
    """Mask decoder that delegates to a segmenter."""

    def __init__(self, segmenter: Segmenter) -> None:
        super().__init__()
        self._segmenter = segmenter

    def forward(
        self,
        image_embeddings: Tensor,
        image_pe: None,
        sparse_prompt_embeddings: tuple[Tensor, Tensor],
        dense_prompt_embeddings: Tensor | None,
        multimask_output: bool,
    ) -> tuple[Tensor, Tensor]:
        """Mask logits and predicted IoUs of the requested tokens."""
        logits, values = self._segmenter.decode(image_embeddings, *sparse_prompt_embeddings, dense_prompt_embeddings)
        tokens = slice(1, None) if multimask_output else slice(0, 1)
        return logits[:, tokens], values[:, tokens]
