"""Boxes and clicks on all instances of an image in lockstep: each round of clicks is one batch for the decoder.

The prompts are those of EfficientViT-SAM's evaluation (``eval_efficientvit_sam_model.py``): a ground-truth box; clicks
one after the other, each on the worst fault of the mask before, all of them given again each time. Of three masks the
one with the highest predicted IoU counts. Its code runs 1, 3 and 5 clicks one after the other; here they are the
first, third and fifth round of one. Beside it the same with the mask before given as a prompt too (``_fed``), as RITM
and SAM do.
`pipeline.evaluate.reference` is the same, call by call.
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
"""What is asked; those with a number are that many clicks."""
SAME_PROMPTS = ("box", "click")
"""Those that do not depend on the model: what two models answer to them can be compared."""
ROUNDS = 5
_NAMES = {3: "click3", 5: "click5"}

Mask = Bool[np.ndarray, "h w"]


@dataclass(frozen=True)
class Answer:
    """What a model says to one prompt."""

    prompt: str
    mask: Mask
    predicted_iou: float


@dataclass
class _Chain:
    """The clicks on one instance so far, and the one that is being looked for."""

    truth: Mask
    clicks: list[Click] = field(default_factory=list)
    coming: Future[Click] | None = None
    low_res: Float[np.ndarray, "m m"] | None = None

    def branch(self) -> "_Chain":
        """Another one with the same past."""
        return _Chain(self.truth, [*self.clicks], self.coming, self.low_res)


def ask(
    predictor: Predictor,
    truths: Sequence[Mask],
    pool: ThreadPoolExecutor,
    prompts_batch: int,
    with_mask_input: bool,
    answered: Callable[[int, Answer], None],
) -> None:
    """Ask for every instance of the current image in every way.

    Args:
        predictor: With the image set.
        truths: The instances' masks, none empty, in C order.
        pool: Looks for the next clicks while the decoder works.
        prompts_batch: Prompts decoded at once.
        with_mask_input: Ask also with the mask before given as a prompt.
        answered: Gets the place of an instance and an answer; each instance and prompt once.
    """
    first = [pool.submit(next_click, truth, np.zeros_like(truth), ()) for truth in truths]
    boxes = np.array([masks.box(truth) for truth in truths], np.float32).reshape(-1, 4)
    for part in _parts(len(truths), prompts_batch):
        best = predictor.predict_best(boxes=boxes[part])
        for i, mask, value in zip(range(part.start, part.stop), best.masks, best.iou_predictions, strict=True):
            answered(i, Answer("box", mask, float(value)))
    plain = [_Chain(truth, coming=click) for truth, click in zip(truths, first, strict=True)]
    _round(predictor, plain, pool, prompts_batch, False, _named(answered, "click"))
    both = [(plain, False, "")] + ([([chain.branch() for chain in plain], True, "_fed")] if with_mask_input else [])
    for number in range(2, ROUNDS + 1):
        for chains, feed, suffix in both:  # while one is decoded, the other's clicks are looked for
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
    """One more click on each instance."""
    for part in _parts(len(chains), prompts_batch):
        group = chains[part]
        for chain in group:
            if chain.coming is not None:
                chain.clicks.append(chain.coming.result())
        coords = np.array([[(c.x, c.y) for c in chain.clicks] for chain in group], np.float32)
        labels = np.array([[int(c.positive) for c in chain.clicks] for chain in group], np.int64)
        before = np.stack([chain.low_res for chain in group if chain.low_res is not None])[:, None] if feed else None
        best = predictor.predict_best(coords, labels, mask_input=before)
        for i, chain in enumerate(group):
            mask = best.masks[i]
            answered(part.start + i, mask, float(best.iou_predictions[i]))
            chain.low_res = best.low_res_masks[i]
            if len(chain.clicks) < ROUNDS:
                clicked = [(c.x, c.y) for c in chain.clicks]
                chain.coming = pool.submit(next_click, chain.truth, mask, clicked)


def _named(answered: Callable[[int, Answer], None], prompt: str | None) -> Callable[[int, Mask, float], None]:
    """Hand on the answers of a round that has a name."""

    def hand_on(i: int, mask: Mask, value: float) -> None:
        if prompt is not None:
            answered(i, Answer(prompt, mask, value))

    return hand_on


def _parts(count: int, size: int) -> Iterator[slice]:
    return (slice(start, min(start + size, count)) for start in range(0, count, size))
