"""The published evaluation call by call: slow, and the judge of `pipeline.evaluate.prompting`.

Source: EfficientViT-SAM, ``eval_efficientvit_sam_model.py`` and ``sam_eval_utils.py`` (the clicker is RITM's). One
``segment_anything.SamPredictor`` is asked prompt by prompt, first for a box, then for each number of clicks from the
beginning; all three masks are brought to the image's size before one is chosen; distance transforms are of the whole
image. What differs: squared distances are rounded to whole numbers before they are compared, because OpenCV's last bit
differs from call to call and would choose between equally far pixels; and the mask before can be given back.
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
    """Ask for one instance of the image that is set, in every way.

    Args:
        predictor: From `predictor_of`, with the image set.
        truth: The instance's mask, not empty.
        with_mask_input: Ask also with the mask before given as a prompt.
    """
    found = [Answer("box", *_ask(predictor, box=np.array(masks.box(truth), np.float32))[:2])]
    for name, count in CLICKS.items():
        found.append(Answer(name, *_click(predictor, truth, count, feed=False)))
        if with_mask_input and count > 1:
            found.append(Answer(f"{name}_fed", *_click(predictor, truth, count, feed=True)))
    return found


def predictor_of(sam: Sam, segmenter: Segmenter | None = None) -> SamPredictor:
    """segment-anything's predictor on a model of ours, without an image encoder.

    Args:
        sam: Gives prompt encoder and mask decoder, which are segment-anything's own.
        segmenter: Decodes in their place, still prompt by prompt. Two orders of the same matrix products differ in the
            last bits, which can turn a choice between nearly equal predicted IoUs; this takes the difference away.
    """
    if segmenter is None:
        published = PublishedSam(_Size(sam.image_size), sam.prompt_encoder, sam.mask_decoder)
    else:
        published = PublishedSam(_Size(sam.image_size), _Points(), _Decoder(segmenter))
    return SamPredictor(published.eval())


def set_embedding(predictor: SamPredictor, embedding: Float[Tensor, "1 256 g g"], size: Size) -> None:
    """What ``SamPredictor.set_image`` leaves, from an image's embedding."""
    predictor.reset_image()
    predictor.features, predictor.original_size = embedding, size
    predictor.input_size = resized(size, predictor.model.image_encoder.img_size)
    predictor.is_image_set = True


def _ask(predictor: SamPredictor, **prompt: Any) -> tuple[Mask, float, np.ndarray]:
    found, values, low_res = predictor.predict(multimask_output=True, **prompt)
    chosen = int(values.argmax())
    return found[chosen], float(values[chosen]), low_res[chosen]


def _click(predictor: SamPredictor, truth: Mask, count: int, *, feed: bool) -> tuple[Mask, float]:
    """``count`` clicks, each given together with those before it."""
    clicker, mask, value, low_res = _Clicker(truth), np.zeros_like(truth), 0.0, None
    for _ in range(count):
        clicker.click(mask)
        before = low_res[None] if feed and low_res is not None else None
        prompt = {"point_coords": np.array(clicker.points), "point_labels": np.array(clicker.labels)}
        mask, value, low_res = _ask(predictor, **prompt, mask_input=before)
    return mask, value


class _Clicker:
    """RITM's clicker on whole images."""

    def __init__(self, truth: Mask) -> None:
        self.points, self.labels = list[tuple[int, int]](), list[int]()
        self._truth, self._free = truth, np.ones_like(truth)

    def click(self, found: Mask) -> None:
        """Add the next click."""
        missing = self._distances(np.logical_and(self._truth, np.logical_not(found)))
        surplus = self._distances(np.logical_and(np.logical_not(self._truth), found))
        positive = missing.max() > surplus.max()
        distances = missing if positive else surplus
        rows, columns = np.where(distances == distances.max())
        self._free[rows[0], columns[0]] = False
        self.points.append((int(columns[0]), int(rows[0])))
        self.labels.append(int(positive))

    def _distances(self, fault: Mask) -> np.ndarray:
        padded = np.pad(fault, 1, "constant").astype(np.uint8)
        distances = cv2.distanceTransform(padded, cv2.DIST_L2, 0)[1:-1, 1:-1]
        return np.rint(distances * distances) * self._free


class _Size(nn.Module):
    """Stands where an image encoder would: all that a predictor asks it is its side."""

    def __init__(self, image_size: int) -> None:
        super().__init__()
        self.img_size = image_size


class _Points(nn.Module):
    """Hands prompts on to `_Decoder` as they are."""

    def forward(
        self, points: tuple[Tensor, Tensor] | None, boxes: Tensor | None, masks: Tensor | None
    ) -> tuple[tuple[Tensor, Tensor], Tensor | None]:
        """Points, box corners and padding with their labels; and the mask."""
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
        """The segmenter has its own."""


class _Decoder(nn.Module):
    """A segmenter in the place of segment-anything's mask decoder."""

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
        """The masks that are asked for, and their predicted IoUs."""
        logits, values = self._segmenter.decode(image_embeddings, *sparse_prompt_embeddings, dense_prompt_embeddings)
        tokens = slice(1, None) if multimask_output else slice(0, 1)
        return logits[:, tokens], values[:, tokens]
