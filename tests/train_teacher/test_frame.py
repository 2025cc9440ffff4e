import numpy as np
import pytest

from pipeline.train_teacher.frame import Cutout, Frame, Picture, affine, boxes_of, coverages_of, cutout

SIDE = 64
WHOLE = (0, 0, SIDE, SIDE)


def square(x=20, y=10, width=16, height=12, side=SIDE):
    mask = np.zeros((side, side), bool)
    mask[y : y + height, x : x + width] = True
    image = np.zeros((side, side, 3), np.uint8)
    image[mask] = 200
    return Picture(image, [cutout(mask)])


def full(instance, side=SIDE):
    mask = np.zeros((side, side), bool)
    height, width = instance.mask.shape
    mask[instance.y : instance.y + height, instance.x : instance.x + width] = instance.mask
    return mask


def test_a_cutout_is_the_mask_in_its_box():
    instance = square().instances[0]
    assert (instance.x, instance.y, instance.mask.shape) == (20, 10, (12, 16))
    assert instance.mask.all()


def test_the_identity_draws_a_picture_as_it_is():
    picture, frame = square(), Frame(SIDE, (9, 9, 9))
    frame.place(picture, affine(1.0, 1.0, 0.0, np.zeros(2), np.zeros(2)), WHOLE)
    np.testing.assert_allclose(frame.image, picture.image, atol=1e-3)
    assert np.array_equal(full(frame.instances[0]), full(picture.instances[0]))


@pytest.mark.parametrize("zoom", [0.4, 0.75, 1.7])
@pytest.mark.parametrize("mirror", [1.0, -1.0])
def test_pixels_and_masks_move_together(zoom, mirror):
    picture, frame = square(), Frame(SIDE, (0, 0, 0))
    frame.place(picture, affine(mirror * zoom, zoom, 0.1, np.array([28, 16]), np.array([30, 34])), WHOLE)
    assert len(frame.instances) == 1
    mask, bright = full(frame.instances[0]), frame.image[..., 0] > 100
    assert (mask & bright).sum() / (mask | bright).sum() > 0.85
    x1, y1, x2, y2 = boxes_of(frame.instances)[0]
    assert abs((x1 + x2) / 2 - 30) <= 1
    assert abs((y1 + y2) / 2 - 34) <= 1


def test_a_picture_stays_in_its_window():
    frame = Frame(SIDE, (7, 7, 7))
    frame.place(square(), affine(2.0, 2.0, 0.0, np.array([28, 16]), np.array([32, 32])), (32, 0, SIDE, 32))
    assert (frame.image[:, :32] == 7).all()
    assert (frame.image[32:] == 7).all()
    assert boxes_of(frame.instances)[0].tolist() == [32, 20, 48, 32]


def test_a_pasted_instance_hides_what_is_beneath():
    frame = Frame(SIDE, (0, 0, 0))
    frame.place(square(), affine(1.0, 1.0, 0.0, np.zeros(2), np.zeros(2)), WHOLE)
    before = full(frame.instances[0])
    picture = square()
    frame.paste(picture, picture.instances[0], affine(1.0, 1.0, 0.0, np.zeros(2), np.array([8, 0])), 0.5)
    beneath, above = map(full, frame.instances)
    assert not (beneath & above).any()
    assert np.array_equal(beneath | above, before | above)
    assert frame.image[16, 36, 0] > 150


def test_an_instance_hidden_almost_wholly_is_dropped():
    frame = Frame(SIDE, (0, 0, 0))
    frame.place(square(), affine(1.0, 1.0, 0.0, np.zeros(2), np.zeros(2)), WHOLE)
    picture = square()
    frame.paste(picture, picture.instances[0], affine(1.0, 1.0, 0.0, np.zeros(2), np.array([2, 0])), 0.5)
    assert len(frame.instances) == 1


def test_coverage_is_the_mean_of_each_cells_pixels():
    coverage = coverages_of([Cutout(np.ones((4, 6), np.uint8), 8, 4)], SIDE, 16)[0]
    assert coverage[1, 2:4].tolist() == [1.0, 0.5]
    assert coverage.sum() == pytest.approx(1.5)
