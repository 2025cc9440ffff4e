"""The evaluation against the published one, call by call."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.data import coco
from pipeline.data.scenes import render
from pipeline.evaluate import reference
from pipeline.evaluate.prompting import PROMPTS, ask
from pipeline.models import build
from pipeline.ops import masks, metrics
from pipeline.runtime import Predictor, load

DATA = Path(os.environ.get("PIPELINE_REAL_DATA", Path(__file__).parents[3] / "shared" / "data")) / "coco_free"
needs_photographs = pytest.mark.skipif(not DATA.is_dir(), reason=f"no photographs at {DATA}")


def _both(sam, image, truths, *, batch, with_mask_input, same_decoder=True):
    """Per instance and prompt: our IoU and the published way's."""
    segmenter = load(sam)
    predictor = Predictor(segmenter)
    predictor.set_image(image)
    ours, theirs = {}, {}
    with ThreadPoolExecutor(2) as pool, torch.inference_mode():
        ask(
            predictor,
            truths,
            pool,
            batch,
            with_mask_input,
            lambda i, a: ours.update({(i, a.prompt): metrics.iou(a.mask, truths[i])}),
        )
        published = reference.predictor_of(sam, segmenter if same_decoder else None)
        reference.set_embedding(published, predictor.features, image.shape[:2])
        for i, truth in enumerate(truths):
            for answer in reference.answers(published, truth, with_mask_input=with_mask_input):
                theirs[i, answer.prompt] = metrics.iou(answer.mask, truth)
    return ours, theirs


@pytest.mark.parametrize("with_mask_input", [False, True])
def test_one_prompt_at_a_time_gives_exactly_the_published_ious(with_mask_input):
    scene = render(np.random.default_rng(3), 256)
    truths = [mask for mask in scene.masks if mask.any()][:3]
    ours, theirs = _both(
        build("bundled"),
        scene.image[:200],
        [m[:200] for m in truths if m[:200].any()],
        batch=1,
        with_mask_input=with_mask_input,
    )
    assert ours == theirs
    assert {prompt for _, prompt in ours} == {p for p in PROMPTS if with_mask_input or not p.endswith("fed")}


@pytest.mark.parametrize("same_decoder", [True, False])
def test_batches_and_the_other_order_of_products_move_a_pixel_at_most(same_decoder):
    scene = render(np.random.default_rng(4), 256)
    truths = [mask for mask in scene.masks if mask.any()][:4]
    ours, theirs = _both(
        build("bundled"), scene.image, truths, batch=16, with_mask_input=False, same_decoder=same_decoder
    )
    assert ours == {key: pytest.approx(value, abs=1e-3) for key, value in theirs.items()}


@pytest.mark.slow
@needs_photographs
def test_on_photographs_every_instances_iou_is_the_published_one_to_six_digits():
    sam = build("bundled")
    for photograph in [p for p in coco.read(DATA / "instances.json", 1).photographs if p.instances][:40]:
        image = np.asarray(Image.open(DATA / "images" / photograph.file_name).convert("RGB"))
        truths = [np.ascontiguousarray(masks.decode(instance.rle)) for instance in photograph.instances[:6]]
        ours, theirs = _both(sam, image, truths, batch=1, with_mask_input=False)
        assert ours == {key: pytest.approx(value, abs=1e-6) for key, value in theirs.items()}, photograph.file_name
