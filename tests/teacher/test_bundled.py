import json

import torch

from pipeline.models import build
from pipeline.models.sam import WEIGHTS, load_weights
from pipeline.teacher import BUNDLED
from pipeline.train_teacher import HELD_OUT_SEED, MODEL_CARD, compact


def test_the_bundled_weights_are_small_and_fit_the_model():
    path = BUNDLED / WEIGHTS
    assert path.stat().st_size <= 15e6
    sam = load_weights(build("bundled"), path)
    assert all(torch.isfinite(value).all() for value in sam.state_dict().values() if value.is_floating_point())


def test_the_card_tells_data_steps_and_metrics_on_scenes_that_were_not_trained_on():
    card = json.loads((BUNDLED / MODEL_CARD).read_text())
    assert card["data"]["seed"] != card["held_out"]["seed"] == HELD_OUT_SEED
    assert card["steps"] > 1000
    assert 0 < card["metrics"]["click_miou"] < card["metrics"]["box_miou"] < 1


def test_compact_weights_differ_from_the_full_ones_by_rounding_alone(tmp_path):
    sam = build("bundled", seed=3).eval()
    compact(sam, tmp_path / WEIGHTS)
    read = load_weights(build("bundled", seed=4), tmp_path / WEIGHTS).eval()
    for key, value in sam.state_dict().items():
        # e4m3 keeps 3 bits of mantissa down to 2^-6, and steps of 2^-9 below.
        assert torch.allclose(read.state_dict()[key].float(), value.float(), rtol=2**-4, atol=2**-10), key
    assert read.state_dict().keys() == sam.state_dict().keys()
