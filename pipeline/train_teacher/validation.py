"""Quick accuracy of a SAM during its training: mIoU for the tight box and one central click, beside trivial masks.

The protocol of ``evaluate`` for these two prompts: of three masks, the one with the highest predicted IoU counts.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from pipeline.data.scenes import render
from pipeline.evaluate.baselines import ellipse
from pipeline.models.decoder import decode
from pipeline.models.sam import Sam
from pipeline.ops import masks
from pipeline.ops.geometry import masks_to_original, points_to_frame, to_input
from pipeline.ops.metrics import band_means, iou
from pipeline.ops.point_labels import BOX_CORNERS, FOREGROUND, PADDING

AT_ONCE = 8


@dataclass(frozen=True)
class Subject:
    """An image and the masks of its instances."""

    image: UInt8[np.ndarray, "h w 3"]
    masks: list[Bool[np.ndarray, "h w"]]


def held_out_scenes(count: int, seed: int, side: int) -> list[Subject]:
    """Render scenes to measure on."""
    scenes = (render(np.random.default_rng((seed, number)), side) for number in range(count))
    return [Subject(scene.image, scene.masks) for scene in scenes if scene.masks]


def trivial(subjects: Sequence[Subject]) -> dict[str, float]:
    """Box mIoU of the filled box and of the inscribed ellipse, over all and per size band."""
    filled, inscribed, areas = [], [], []
    for subject in subjects:
        for mask in subject.masks:
            box = masks.box(mask)
            x1, y1, x2, y2 = map(int, box)
            area = int(np.count_nonzero(mask))
            filled.append(area / ((x2 - x1) * (y2 - y1)))
            inscribed.append(iou(ellipse(box, mask.shape), mask))
            areas.append(area)
    return band_means("filled_box", filled, areas) | band_means("ellipse", inscribed, areas)


@torch.inference_mode()
def accuracy(sam: Sam, subjects: Sequence[Subject]) -> dict[str, float]:
    """``box_miou``, ``click_miou`` and their bands; ``_best`` is the mean of the best of the three masks."""
    ious: dict[str, list[float]] = {"box": [], "click": [], "box_best": [], "click_best": []}
    areas = [int(np.count_nonzero(mask)) for subject in subjects for mask in subject.masks]
    for subject in subjects:
        embedding = sam.image_encoder(to_input(subject.image, sam.input_size)[None])
        for start in range(0, len(subject.masks), AT_ONCE):
            truths = subject.masks[start : start + AT_ONCE]
            for prompt, (coords, labels) in _prompts(truths, sam.image_size).items():
                logits, predicted = decode(sam, embedding, coords, labels)
                for truth, answer, values in zip(truths, logits[0, :, 1:], predicted[0, :, 1:], strict=True):
                    full = masks_to_original(answer[None], truth.shape, sam.image_size)[0] > 0
                    scores = [iou(mask.numpy(), truth) for mask in full]
                    ious[prompt].append(scores[int(values.argmax())])
                    ious[f"{prompt}_best"].append(max(scores))
    result = band_means("box_miou", ious["box"], areas) | band_means("click_miou", ious["click"], areas)
    return result | {f"{name}_miou": float(np.mean(ious[name])) for name in ("box_best", "click_best")}


def _prompts(truths: Sequence[np.ndarray], side: int) -> dict[str, tuple[Float[Tensor, "1 n 2 2"], Tensor]]:
    size = (truths[0].shape[0], truths[0].shape[1])
    boxes = np.array([masks.box(truth) for truth in truths]).reshape(-1, 2, 2)
    clicks = np.array([[masks.center(np.ascontiguousarray(truth)), (0, 0)] for truth in truths], np.float64)
    corners, centers = (torch.from_numpy(points_to_frame(points, size, side)) for points in (boxes, clicks))
    box_labels = torch.tensor([list(BOX_CORNERS)], dtype=torch.float32).expand(len(truths), -1)
    click_labels = torch.tensor([[float(FOREGROUND), float(PADDING)]]).expand(len(truths), -1)
    return {"box": (corners[None], box_labels[None]), "click": (centers[None], click_labels[None])}
