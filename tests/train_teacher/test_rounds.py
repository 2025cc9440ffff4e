import numpy as np
import pytest
import torch

from pipeline.data.prompts import first_prompts
from pipeline.data.scenes import render
from pipeline.models import build
from pipeline.ops import masks
from pipeline.ops.geometry import masks_to_frame, masks_to_original, to_input
from pipeline.train_teacher.rounds import finer, two_rounds
from pipeline.train_teacher.windows import whole

SIDE, GRID, PROMPTS = 256, 128, 4
TERMS = {"focal", "dice", "iou"}


def generators(number=0):
    return [np.random.default_rng((number, place)) for place in range(2)]


@pytest.fixture(scope="module")
def scenes():
    return [render(np.random.default_rng((7, number)), SIDE) for number in range(2)]


def drawn(scenes, number=0):
    images = torch.cat([to_input(scene.image, SIDE)[None] for scene in scenes])
    coverages = [masks_to_frame(torch.from_numpy(np.array(s.masks, np.float32)), SIDE, GRID).numpy() for s in scenes]
    boxes = [np.array([masks.box(m) for m in s.masks], np.float32) for s in scenes]
    return images, first_prompts(generators(number), coverages, boxes, PROMPTS, SIDE)


def losses_of(sam, scenes, number=0, *, correct):
    images, prompts = drawn(scenes, number)
    embeddings = sam.image_encoder(images)
    return two_rounds(sam, embeddings, prompts, generators(number), correct=correct, window=whole(sam))


def test_the_loss_can_be_brought_down(scenes):
    sam = build("bundled").train()
    optimizer = torch.optim.AdamW(sam.parameters(), lr=1e-3)
    reached = []
    for _ in range(16):
        loss = losses_of(sam, scenes, correct=False)["loss"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        reached.append(loss.item())
    assert reached[-1] < 0.75 * reached[0]


def test_the_first_round_alone_has_no_corrected_terms_and_the_second_adds_to_the_loss(scenes):
    sam = build("bundled").eval()
    with torch.no_grad():
        one, both = (losses_of(sam, scenes, correct=correct) for correct in (False, True))
    assert one.keys() == {"loss"} | TERMS
    assert both.keys() == one.keys() | {f"corrected_{term}" for term in TERMS}
    assert all(torch.equal(one[term], both[term]) for term in TERMS)
    second = 20 * both["corrected_focal"] + both["corrected_dice"] + both["corrected_iou"]
    torch.testing.assert_close(both["loss"], one["loss"] + second)
    assert second > 0


def test_gradient_reaches_every_parameter_that_a_prompt_can_use(scenes):
    sam = build("bundled").train()
    with torch.no_grad():  # residual branches begin at zero and would block all gradients
        for name, parameter in sam.named_parameters():
            if name.endswith("point_norm.weight"):
                parameter.fill_(1.0)
    for number in range(2):
        losses_of(sam, scenes, number, correct=True)["loss"].backward()
    without = {name for name, p in sam.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0}
    # Only the best of the three masks is trained, so some of their heads may have no gradient in two steps.
    # Softmax ignores what is added to all keys.
    excused = ("output_hypernetworks_mlps", "k_proj.bias")
    assert {name for name in without if not any(part in name for part in excused)} == set()


def test_losses_see_the_masks_that_are_returned_for_a_square_image():
    logits = torch.randn(1, 2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(finer(logits)[0], masks_to_original(logits[0], (GRID, GRID), GRID))
