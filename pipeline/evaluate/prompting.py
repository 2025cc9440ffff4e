"""Prompt all instances of an image in lockstep: each round of clicks is one decoder batch.

Prompts follow EfficientViT-SAM's ``eval_efficientvit_sam_model.py``: a ground-truth box; successive clicks, each in the
largest error region of the previous mask, with all clicks so far passed every time. Of three masks the one with the
highest predicted IoU is scored. The published code runs 1, 3 and 5 clicks separately; here they are rounds 1, 3 and 5
of one sequence. The ``_fed`` variants also pass the previous mask as a prompt, as RITM and SAM do.
`pipeline.evaluate.reference` computes the same, call by call.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
from jaxtyping import Bool, Float

from pipeline.ops import masks
from pipeline.ops.clicks import Click, next_click
from pipeline.runtime import Predictor

PROMPTS = ("box", "click", "click3", "click5", "click3_fed", "click5_fed")
"""Prompt types; a number is the number of clicks."""
SAME_PROMPTS = ("box", "click")
"""Prompts that do not depend on the model, so that two models' masks for them are comparable."""
ROUNDS = 5
_NAMES = {3: "click3", 5: "click5"}

Mask = Bool[np.ndarray, "h w"]


@dataclass(frozen=True)
class Answer:
    """A model's mask for one prompt."""

    prompt: str
    mask: Mask
    predicted_iou: float


@dataclass
class _Chain:
    """The clicks on one instance so far, and the pending next one."""

    truth: Mask
    clicks: list[Click] = field(default_factory=list)
    pending: Future[Click] | None = None
    low_res: Float[np.ndarray, "m m"] | None = None

    def branch(self) -> "_Chain":
        """Copy the chain with its history."""
        return _Chain(self.truth, [*self.clicks], self.pending, self.low_res)


def ask(
    predictor: Predictor,
    truths: Sequence[Mask],
    pool: ThreadPoolExecutor,
    prompts_batch: int,
    with_mask_input: bool,
    answered: Callable[[int, Answer], None],
    boxes: Sequence[tuple[float, float, float, float]] | None = None,
) -> None:
    """Predict every instance of the current image from every prompt.

    Args:
        predictor: Predictor with the image set.
        truths: The instances' masks, none empty, in C order.
        pool: Computes the next clicks while the decoder runs.
        prompts_batch: Prompts per decoder call.
        with_mask_input: Predict also with the previous mask as a prompt.
        answered: Called with the index of an instance and an answer, once per instance and prompt.
        boxes: The box prompts xyxy in pixels; default: the masks' own.
    """
    first = [pool.submit(next_click, truth, np.zeros_like(truth), ()) for truth in truths]
    corners = np.array(boxes or [masks.box(truth) for truth in truths], np.float32).reshape(-1, 4)
    for part in _parts(len(truths), prompts_batch):
        best = predictor.predict_best(boxes=corners[part])
        for i, mask, value in zip(range(part.start, part.stop), best.masks, best.iou_predictions, strict=True):
            answered(i, Answer("box", mask, float(value)))
    plain = [_Chain(truth, pending=click) for truth, click in zip(truths, first, strict=True)]
    _round(predictor, plain, pool, prompts_batch, False, _named(answered, "click"))
    both = [(plain, False, "")] + ([([chain.branch() for chain in plain], True, "_fed")] if with_mask_input else [])
    for number in range(2, ROUNDS + 1):
        for chains, feed, suffix in both:  # one variant decodes while the other's clicks are computed
            name = _NAMES.get(number)
            _round(predictor, chains, pool, prompts_batch, feed, _named(answered, name and name + suffix))


def _round(
    predictor: Predictor,
    chains: Sequence[_Chain],
    pool: ThreadPoolExecutor,
    prompts_batch: int,
    feed: bool,
    answered: Callable[[int, Mask, float], None],
) -> None:
    """Add one click to each instance and predict its mask."""
    for part in _parts(len(chains), prompts_batch):
        group = chains[part]
        for chain in group:
            if chain.pending is not None:
                chain.clicks.append(chain.pending.result())
        coords = np.array([[(c.x, c.y) for c in chain.clicks] for chain in group], np.float32)
        labels = np.array([[int(c.positive) for c in chain.clicks] for chain in group], np.int64)
        previous = np.stack([chain.low_res for chain in group if chain.low_res is not None])[:, None] if feed else None
        best = predictor.predict_best(coords, labels, mask_input=previous)
        for i, chain in enumerate(group):
            mask = best.masks[i]
            answered(part.start + i, mask, float(best.iou_predictions[i]))
            chain.low_res = best.low_res_masks[i]
            if len(chain.clicks) < ROUNDS:
                clicked = [(c.x, c.y) for c in chain.clicks]
                chain.pending = pool.submit(next_click, chain.truth, mask, clicked)


def _named(answered: Callable[[int, Answer], None], prompt: str | None) -> Callable[[int, Mask, float], None]:
    """Report the answers of a round under the prompt's name; unnamed rounds are not reported."""

    def report(i: int, mask: Mask, value: float) -> None:
        if prompt is not None:
            answered(i, Answer(prompt, mask, value))

    return report


def _parts(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
