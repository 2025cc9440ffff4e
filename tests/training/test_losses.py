import math
from functools import partial

import pytest
import torch

from pipeline.training import losses


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


def test_all_masks_are_trained_for_the_prompts_whose_weight_is_set():
    logits = torch.zeros(1, 2, 3, 8, 8, requires_grad=True)
    target, present = torch.ones(1, 2, 8, 8), torch.ones(1, 2, dtype=torch.bool)
    terms = losses.best_mask(
        logits, torch.zeros(1, 2, 3), target, present, all_weight=torch.tensor([[1.0, 0.0]]), iou_weight=0.0
    )
    terms["loss"].backward()
    trained = logits.grad.abs().sum(dim=(-2, -1))[0] > 0
    assert trained[0].all()
    assert trained[1].sum() == 1
    expected = 20 * terms["focal"] + terms["dice"]
    torch.testing.assert_close(terms["loss"].detach(), 1.5 * expected.detach())


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
    student, teacher = (torch.full((1, 2, 2, 2), value, requires_grad=True) for value in (1.0, 0.0))
    losses.embedding_error(student, teacher, torch.ones(1, 2, 2, dtype=torch.bool), "mse").backward()
    assert student.grad.abs().min() > 0
    assert teacher.grad is None


def test_embedding_error_is_the_mean_of_each_image_over_its_own_cells():
    student, teacher = torch.zeros(2, 1, 2, 2), torch.ones(2, 1, 2, 2)
    teacher[1] = 3
    valid = torch.ones(2, 2, 2, dtype=torch.bool)
    valid[1, 1:] = False
    assert losses.embedding_error(student, teacher, valid, "mse").tolist() == [1.0, 9.0]


def test_features_are_compared_without_their_scale():
    teacher = torch.tensor([1.0, -1.0]).reshape(1, 2, 1, 1)
    valid = torch.ones(1, 1, 1, dtype=torch.bool)
    assert losses.feature_error(100 * teacher + 7, teacher, valid).item() == pytest.approx(0, abs=1e-4)
    # Normalised, the two are (1, -1) and (-1, 1): each channel is off by 2.
    assert losses.feature_error(-3 * teacher, teacher, valid).item() == pytest.approx(4, rel=1e-4)


def test_relative_l1_is_a_share_of_the_teachers_scale():
    teacher = torch.tensor([[[2.0, -4.0], [4.0, -2.0]]])  # one image, two prompts; mean absolute value 3
    student = teacher + torch.tensor([[[3.0, -3.0], [0.0, 0.0]]])
    assert losses.relative_l1(student, teacher, 2).tolist() == [[1.0, 0.0]]


def test_hard_mask_weight_is_a_half_where_both_are_as_good_and_grows_where_the_student_is_worse():
    target = torch.tensor([[[1.0, 1, 1, 1]]])
    whole, half = torch.ones(1, 1, 4), torch.tensor([[[1.0, 1, -1, -1]]])
    assert losses.hard_mask_weight(whole, whole, target).item() == pytest.approx(0.5, abs=1e-5)
    assert losses.hard_mask_weight(half, whole, target).item() == pytest.approx(1 / (1 + math.exp(-1)), abs=1e-4)
    assert losses.hard_mask_weight(-whole, whole, target).item() == pytest.approx(1)


def test_uncertain_points_are_those_whose_logit_is_nearest_to_zero():
    logits = torch.full((1, 1, 1, 2, 2), 20.0)
    logits[..., 0, 0] = 0  # the only doubt, at a fourth of each side
    centres = torch.tensor([[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]])
    # 13 candidates keep 4: 3 of the 12 offered, the most uncertain, and the last, which nobody chose.
    candidates = torch.cat([centres[:1].expand(3, 2), centres[1:].repeat(3, 1), centres[3:]])[None, None]
    target = torch.zeros(1, 1, 1, 2, 2)
    terms = losses.bce_points(logits, target, candidates)
    assert terms["bce"].item() == pytest.approx((3 * math.log(2) + 20) / 4, rel=1e-5)
    mask = 3 * 0.5 + 1
    assert terms["dice"].item() == pytest.approx(1 - 1 / (mask + 1), rel=1e-5)


def test_candidates_are_thirteen_fourths_of_the_published_112_by_112_points():
    assert losses.candidates_of(256) == 112 * 112 * 13 // 4


@pytest.mark.parametrize(
    "loss",
    [
        lambda s, t, v: losses.embedding_error(s, t, v, "mse"),
        lambda s, t, v: losses.embedding_error(s, t, v, "l1"),
        losses.feature_error,
        lambda s, t, v: losses.relative_l1(s, t, 1),
    ],
)
def test_losses_vanish_where_student_equals_teacher_and_teach_the_student_only(loss):
    generator = torch.Generator().manual_seed(0)
    teacher = torch.randn(2, 6, 3, 3, generator=generator).requires_grad_(True)
    valid = torch.ones(2, 3, 3, dtype=torch.bool)
    assert loss(teacher.detach(), teacher, valid).abs().max() < 1e-9
    student = (teacher.detach() + torch.randn(2, 6, 3, 3, generator=generator)).requires_grad_(True)
    loss(student, teacher, valid).sum().backward()
    assert student.grad.abs().min() > 0
    assert teacher.grad is None


@pytest.mark.parametrize("mask_loss", ["focal_dice", "bce_points"])
def test_mask_losses_nearly_vanish_for_a_sure_and_right_mask_and_teach_the_logits(mask_loss):
    generator = torch.Generator().manual_seed(0)
    target = torch.zeros(1, 2, 16, 16)
    target[:, 0] = 1  # no border: between cells, truth is soft
    candidates = torch.rand(1, 2, losses.candidates_of(16), 2, generator=generator)
    loss = {"focal_dice": losses.focal_dice, "bce_points": partial(losses.bce_points, candidates=candidates)}[mask_loss]
    present, sure = torch.ones(1, 2, dtype=torch.bool), (target[:, :, None] - 0.5) * 200
    assert losses.best_mask(sure, torch.ones(1, 2, 1), target, present, mask_loss=loss)["loss"] < 1e-5
    logits = torch.randn(1, 2, 3, 16, 16, generator=generator).requires_grad_(True)
    terms = losses.best_mask(logits, torch.zeros(1, 2, 3), target, present, mask_loss=loss)
    terms["loss"].backward()
    assert (logits.grad.abs().sum((-2, -1)) > 0).sum() == 2  # one of three for each prompt


def test_the_iou_error_can_be_l1_as_tinysams():
    target, present = torch.ones(1, 1, 2, 2), torch.ones(1, 1, dtype=torch.bool)
    logits, predictions = torch.ones(1, 1, 1, 2, 2), torch.tensor([[[0.75]]])
    terms = losses.best_mask(logits, predictions, target, present, iou_distance=torch.nn.functional.l1_loss)
    assert terms["iou"].item() == pytest.approx(0.25)
