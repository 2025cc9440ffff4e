import json

import torch

from pipeline.models import build
from pipeline.models.sam import WEIGHTS, load_weights
from pipeline.teacher import BUNDLED


def test_the_bundled_weights_are_small_and_fit_the_model():
    path = BUNDLED["bundled"] / WEIGHTS
    assert path.stat().st_size <= 15e6
    sam = load_weights(build("bundled"), path)
    assert all(torch.isfinite(value).all() for value in sam.state_dict().values() if value.is_floating_point())


def test_the_card_tells_data_steps_and_metrics_on_scenes_that_were_not_trained_on():
    card = json.loads((BUNDLED["bundled"] / "card.json").read_text())
    assert card["data"]["seed"] != card["held_out"]["seed"]
    assert card["steps"] > 1000
    assert 0 < card["metrics"]["click_miou"] < card["metrics"]["box_miou"] < 1
