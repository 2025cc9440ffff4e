import copy
from itertools import pairwise

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from pipeline.data.prompts import Prompts, disagreement_clicks
from pipeline.distill.config import PromptInTheLoopRecipe
from pipeline.distill.prompt_in_the_loop import Decoded, decode_in_loop, mask_terms, weigh
from pipeline.models import build
from pipeline.models.decoder import decode


@pytest.fixture(scope="module")
def sam():
    return build("bundled", seed=1).eval()


@pytest.fixture(scope="module")
def embeddings():
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(2, 256, 16, 16, generator=generator) for _ in range(2)]


VALID = torch.ones(2, 16, 16, dtype=torch.bool)
VALID[1, 10:] = False
BOX_AND_CLICK = torch.tensor([[[30.0, 40.0], [90.0, 99.0]], [[70.0, 80.0], [0.0, 0.0]]])
PROMPTS = Prompts(
    BOX_AND_CLICK.expand(2, 2, 2, 2), torch.tensor([[2.0, 3.0], [1.0, -1.0]]).expand(2, 2, 2),
    torch.zeros(2, 2, 64, 64), torch.ones(2, 2, dtype=torch.bool),
)  # fmt: skip


def loop(sam, teacher, embeddings, loops=3, masks=False, seed=0):
    chance = torch.rand(2, loops - 1, 2, generator=torch.Generator().manual_seed(seed))
    return decode_in_loop(sam, teacher, *embeddings, PROMPTS, VALID, chance, np.full(loops - 1, masks))


def slow_click(student, teacher, valid, chance, side):
    """One prompt's click, cell by cell."""
    cells = [
        (row, column)
        for row in range(len(student))
        for column in range(len(student))
        if valid[row, column] and (student[row, column] > 0) != (teacher[row, column] > 0)
    ]
    if not cells:
        return [0.0, 0.0], -1.0
    row, column = cells[int(chance * len(cells))]
    cell = side / len(student)
    return [(column + 0.5) * cell, (row + 0.5) * cell], float(teacher[row, column] > 0)


def test_clicks_are_those_of_a_slow_oracle():
    generator = torch.Generator().manual_seed(3)
    student, teacher = (torch.randn(3, 5, 8, 8, generator=generator) for _ in range(2))
    student[0, 0] = teacher[0, 0]
    valid = torch.rand(3, 1, 8, 8, generator=generator) > 0.3
    chance = torch.rand(3, 5, generator=generator)
    coords, labels = disagreement_clicks(student, teacher, valid, chance, 256)
    assert coords.shape == (3, 5, 1, 2)
    for i, j in np.ndindex(3, 5):
        point, label = slow_click(student[i, j], teacher[i, j], valid[i, 0], float(chance[i, j]), 256)
        assert coords[i, j, 0].tolist() == point
        assert labels[i, j].tolist() == [label]
    assert set(labels.flatten().tolist()) == {-1.0, 0.0, 1.0}


def test_a_chance_next_to_1_is_the_last_cell():
    student, teacher = -torch.ones(1, 1, 4, 4), -torch.ones(1, 1, 4, 4)
    teacher[..., :3, 1] = 1
    last = torch.nextafter(torch.tensor([[1.0]]), torch.tensor(0.0))
    coords, labels = disagreement_clicks(student, teacher, torch.ones(1, 1, 4, 4, dtype=torch.bool), last, 4)
    assert (coords.flatten().tolist(), labels.item()) == ([1.5, 2.5], 1)


def test_every_round_adds_a_click_with_the_label_of_the_disagreement_to_those_before(sam, embeddings):
    decoded = loop(sam, sam, embeddings)
    assert [each.coords.shape[2] for each in decoded] == [2, 3, 4]
    assert torch.equal(decoded[0].coords, PROMPTS.coords)
    labels = []
    for before, after in pairwise(decoded):
        n = before.coords.shape[2]
        assert torch.equal(after.coords[:, :, :n], before.coords)
        assert torch.equal(after.labels[:, :, :n], before.labels)
        best = before.iou_predictions.argmax(dim=2)
        for i, j in np.ndindex(2, 2):
            column, row = (after.coords[i, j, n] / 4).long().tolist()
            ours, theirs = (bool(x[i, j, best[i, j], row, column] > 0) for x in (before.student, before.teacher))
            assert ours != theirs
            assert after.labels[i, j, n] == float(theirs)
            assert VALID[i, row // 4, column // 4]
            labels.append(theirs)
    assert set(labels) == {True, False}


def test_decodings_are_those_of_each_model_on_all_points_so_far(sam, embeddings):
    teacher = build("bundled", seed=2).eval()
    for each in loop(sam, teacher, embeddings):
        assert torch.equal(each.student, decode(sam, embeddings[0], each.coords, each.labels)[0])
        target, iou = decode(teacher, embeddings[1], each.coords, each.labels)
        assert torch.equal(each.teacher, target)
        assert torch.equal(each.iou_predictions, iou)


def test_a_student_that_agrees_with_its_teacher_gets_padding_and_no_click(sam, embeddings):
    decoded = loop(sam, sam, [embeddings[0], embeddings[0]])
    assert (decoded[-1].labels[:, :, 2:] == -1).all()
    assert (decoded[-1].coords[:, :, 2:] == 0).all()


def test_mask_prompts_change_what_both_models_decode_after_the_first_time(sam, embeddings):
    without, with_masks = (loop(sam, sam, embeddings, loops=2, masks=masks) for masks in (False, True))
    assert torch.equal(without[0].student, with_masks[0].student)
    assert torch.equal(without[1].coords, with_masks[1].coords)
    mask = with_masks[0].compared()[0][:, :, None]
    for name, embedding in zip(("student", "teacher"), embeddings, strict=True):
        found = getattr(with_masks[1], name)
        assert not torch.allclose(found, getattr(without[1], name), atol=1e-3)
        assert torch.equal(found, decode(sam, embedding, with_masks[1].coords, with_masks[1].labels, mask)[0])


def test_gradient_reaches_the_students_embedding_and_decoder_and_nothing_of_the_teacher(sam, embeddings):
    student, teacher = copy.deepcopy(sam), build("bundled", seed=2).eval()
    ours, theirs = (embedding.clone().requires_grad_(True) for embedding in embeddings)
    decoded = loop(student, teacher, [ours, theirs], masks=True)
    terms = mask_terms(decoded, PROMPTS.present, VALID)
    (terms["bce"] + terms["dice"]).backward()
    assert ours.grad.abs().sum() > 0
    assert theirs.grad is None
    assert all(parameter.grad is None for parameter in teacher.parameters())
    without = {key for key, p in student.mask_decoder.named_parameters() if p.grad is None}
    # The IoU head has no loss; a key's bias changes no softmax.
    assert {key for key in without if not key.endswith("token_to_image.k_proj.bias")} == {
        f"iou_prediction_head.layers.{layer}.{name}" for layer in range(3) for name in ("weight", "bias")
    }


def decodings(student, teacher):
    nothing = torch.zeros(*student.shape[:2], 2, 2), torch.zeros(*student.shape[:2], 2)
    return Decoded(*nothing, student, teacher, torch.zeros(student.shape[:3]))


def test_the_loss_is_that_of_present_prompts_over_the_unpadded_area():
    generator = torch.Generator().manual_seed(0)
    pairs = [[torch.randn(2, 3, 4, 8, 8, generator=generator) for _ in range(2)] for _ in range(2)]
    valid = torch.ones(2, 2, 2, dtype=torch.bool)
    valid[0, 1] = False
    present = torch.tensor([[True, True, True], [False, False, False]])
    terms = mask_terms([decodings(*pair) for pair in pairs], present, valid)
    bce, dice = [], []
    for student, teacher in pairs:
        for j, k in np.ndindex(3, 4):
            logits, target = student[0, j, k, :4], (teacher[0, j, k, :4] > 0).float()
            bce.append(F.binary_cross_entropy_with_logits(logits, target).item())
            mask = logits.sigmoid()
            dice.append(1 - float((2 * (mask * target).sum() + 1) / (mask.sum() + target.sum() + 1)))
    assert terms["bce"].item() == pytest.approx(np.mean(bce), rel=1e-5)
    assert terms["dice"].item() == pytest.approx(np.mean(dice), rel=1e-5)
    absent = mask_terms([decodings(*pairs[0])], torch.zeros(2, 3, dtype=torch.bool), valid)
    assert not any(absent.values())


def test_each_term_has_its_weight():
    recipe = PromptInTheLoopRecipe(kind="prompt_in_the_loop", bce_weight=2, dice_weight=3, embedding_weight=5)
    terms = {"bce": torch.tensor(1.0), "dice": torch.tensor(10.0), "embedding": torch.tensor(100.0)}
    assert weigh(recipe, terms)["loss"] == 2 + 30 + 500
    assert weigh(recipe, {"bce": terms["bce"], "dice": terms["dice"]})["loss"] == 2 + 30
