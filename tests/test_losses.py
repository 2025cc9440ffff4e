import math

import pytest
import torch

from pipeline import losses


def test_focal_of_an_undecided_pixel_is_a_quarter_of_log_two():
    logits, target = torch.zeros(2, 3, 3), torch.ones(2, 3, 3)
    assert losses.focal(logits, target).tolist() == pytest.approx([math.log(2) / 4] * 2)


def test_focal_with_gamma_zero_is_cross_entropy():
    generator = torch.Generator().manual_seed(0)
    logits, target = torch.randn(4, 5, 5, generator=generator), torch.rand(4, 5, 5, generator=generator)
    expected = torch.nn.functional.binary_cross_entropy_with_logits(logits, target, reduction="none").mean((1, 2))
    assert torch.allclose(losses.focal(logits, target, gamma=0.0), expected)


def test_dice_of_half_overlap():
    logits, target = torch.full((1, 4), -50.0).reshape(1, 1, 4), torch.tensor([[[1.0, 1, 0, 0]]])
    logits[..., 1:3] = 50
    assert losses.dice(logits, target).item() == pytest.approx(1 - (2 * 1 + 1) / (2 + 2 + 1))


def test_both_vanish_for_a_sure_and_right_mask():
    target = (torch.arange(64).reshape(1, 8, 8) % 3 == 0).float()
    logits = (target - 0.5) * 100
    assert losses.focal(logits, target).item() < 1e-6
    assert losses.dice(logits, target).item() < 1e-6


def test_iou_of_masks_by_hand_and_of_two_empty_ones():
    logits = torch.tensor([[[1.0, 1, -1, -1]], [[-1.0, -1, -1, -1]]])
    target = torch.tensor([[[0.0, 1, 1, 0]], [[0.0, 0, 0, 0]]])
    assert losses.mask_iou(logits, target).tolist() == pytest.approx([1 / 3, 1.0])


def test_only_the_best_mask_is_trained_and_only_prompts_that_count():
    target = torch.zeros(1, 2, 4, 4)
    target[..., :2] = 1
    logits = torch.zeros(1, 2, 3, 4, 4)
    logits[:, :, 1] = (target[:, :] - 0.5) * 4  # the second candidate is the best
    logits.requires_grad_(True)
    terms = losses.best_mask(logits, torch.zeros(1, 2, 3), target, torch.tensor([[True, False]]))
    terms["loss"].backward()
    used = logits.grad.abs().sum((-2, -1))[0] > 0
    assert used.tolist() == [[False, True, False], [False, False, False]]


def test_the_iou_head_learns_the_iou_of_every_candidate():
    target = torch.zeros(1, 1, 2, 2)
    target[..., 0, 0] = 1
    logits = torch.full((1, 1, 2, 2, 2), -5.0)
    logits[0, 0, 0, 0, 0] = 5
    logits[0, 0, 1] = 5
    predictions = torch.tensor([[[1.0, 0.25]]])
    assert losses.best_mask(logits, predictions, target, torch.ones(1, 1, dtype=torch.bool))["iou"] == 0


def test_embedding_loss_ignores_padding_and_is_zero_when_equal():
    student, teacher = torch.zeros(1, 2, 2, 2), torch.zeros(1, 2, 2, 2)
    valid = torch.tensor([[[True, False], [True, False]]])
    teacher[..., 1] = 7  # padding
    assert losses.embedding_error(student, teacher, valid, "mse") == 0
    teacher[0, 0, 0, 0] = 2  # one of two channels of one of two valid cells
    assert losses.embedding_error(student, teacher, valid, "mse").item() == pytest.approx(4 / 2 / 2)
    assert losses.embedding_error(student, teacher, valid, "l1").item() == pytest.approx(2 / 2 / 2)


def test_embedding_gradient_reaches_the_student_only():
    student, teacher = torch.ones(1, 2, 2, 2, requires_grad=True), torch.zeros(1, 2, 2, 2)
    losses.embedding_error(student, teacher, torch.ones(1, 2, 2, dtype=torch.bool), "mse").backward()
    assert student.grad.abs().min() > 0
    assert teacher.grad is None
