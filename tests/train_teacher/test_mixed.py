import json

import cv2
import numpy as np
import pytest
import torch

from pipeline.models import build
from pipeline.models.efficientnet_lite import EfficientNetLite
from pipeline.models.sam import WEIGHTS, load_weights
from pipeline.ops import masks
from pipeline.ops.geometry import PIXEL_MEAN, PIXEL_STD
from pipeline.teacher import BUNDLED
from pipeline.train_teacher import photographs as photos
from pipeline.train_teacher.frame import Picture, cutout
from pipeline.train_teacher.imagenet import trunk_state
from pipeline.train_teacher.mixed import MixedConfig, averaged, draw_batch, start_decoder, train_mixed
from pipeline.train_teacher.validation import Subject, accuracy, held_out_scenes, trivial

PARTS = {
    "expand.0": "_expand_conv",
    "expand.1": "_bn0",
    "depthwise.0": "_depthwise_conv",
    "depthwise.1": "_bn1",
    "project.0": "_project_conv",
    "project.1": "_bn2",
}


def published_weights(path):
    """Random weights with the published names, the last stage and the classifier included."""
    generator, state, first = torch.Generator().manual_seed(0), {}, (0, 1, 3, 5, 8, 11)
    for key, value in EfficientNetLite().state_dict().items():
        if key.startswith("stem"):
            name = key.replace("stem.0", "_conv_stem").replace("stem.1", "_bn0")
        else:
            _, stage, block, part, number, kind = key.split(".")
            name = f"_blocks.{first[int(stage)] + int(block)}.{PARTS[f'{part}.{number}']}.{kind}"
        state[name] = value if value.ndim == 0 else torch.rand(value.shape, generator=generator) * 0.2 + 0.1
    state |= {"_blocks.15._bn1.weight": torch.ones(3), "_fc.weight": torch.ones(3, 3), "_bn1.bias": torch.ones(3)}
    torch.save(state, path)
    return path


def ellipse_picture(seed, side=96):
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 90, (side, side, 3), np.uint8)
    mask = np.zeros((side, side), np.uint8)
    cv2.ellipse(mask, (48, 40), (26, 17), 30, 0, 360, 1, -1)
    image[mask > 0] += 140
    return Picture(image, [cutout(mask.astype(bool))])


def config(folder, **changes):
    optimizer = {
        "steps": 2,
        "lr": 0.001,
        "warmup_steps": 1,
        "ema_decay": 0.5,
        "autocast": "none",
        "checkpoint_every": 1,
    }
    values = {"photographs": str(folder), "imagenet": str(folder / "lite0.pth"), "scene_share": 0.5, "exact_share": 0.5}
    values |= {"batch": 2, "prompts": 3, "correct_every": 2, "measure_every_s": 1e6, "optimizer": optimizer}
    values |= {"windows": [32, 8]}
    return MixedConfig.model_validate(values | changes)


def test_published_weights_fit_the_trunk_and_take_pixels_normalised_as_sams(tmp_path):
    path = published_weights(tmp_path / "lite0.pth")
    trunk = EfficientNetLite().eval()
    trunk.load_state_dict(trunk_state(path), strict=True)
    raw = torch.rand(1, 3, 9, 9, generator=torch.Generator().manual_seed(1)) * 255
    weights = torch.load(path, weights_only=True)
    expected = torch.nn.functional.conv2d((raw - 127) / 128, weights["_conv_stem.weight"], stride=2)
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (PIXEL_MEAN, PIXEL_STD))
    computed = torch.nn.functional.conv2d((raw - mean) / std, trunk.stem[0].weight, stride=2)
    shift = weights["_bn0.running_mean"] - trunk.stem[1].running_mean
    torch.testing.assert_close(computed + shift[:, None, None], expected, rtol=0, atol=1e-4)


def test_batch_norms_keep_their_statistics_in_training():
    sam = build("bundled_v2").train()
    before = {key: value.clone() for key, value in sam.state_dict().items() if "running" in key}
    sam.image_encoder(torch.randn(1, 3, 512, 512))
    after = sam.state_dict()
    assert before
    assert all(torch.equal(value, after[key]) for key, value in before.items())


def test_the_decoder_of_the_bundled_teacher_fits():
    sam = build("bundled_v2")
    start_decoder(sam, BUNDLED / WEIGHTS)
    expected = load_weights(build("bundled"), BUNDLED / WEIGHTS)
    for part in ("prompt_encoder", "mask_decoder"):
        own, others = (getattr(model, part).state_dict() for model in (sam, expected))
        assert all(torch.equal(value, others[key]) for key, value in own.items())


@pytest.mark.parametrize(("side", "count"), [(128, 1), (64, 4), (32, 16)])
@pytest.mark.parametrize("scene_share", [0.0, 1.0])
def test_images_masks_and_prompts_of_a_batch_agree(tmp_path, scene_share, side, count):
    pictures = [ellipse_picture(seed) for seed in range(3)]
    rngs = [np.random.default_rng((3, place)) for place in range(4)]
    settings = config(tmp_path, scene_share=scene_share, exact_share=1.0, prompts=6)
    images, prompts, _ = draw_batch(settings, pictures, [0, 1, 2, 0], rngs, 128, side)
    assert images.shape == (count, 3, side, side)
    assert images.isfinite().all()
    for image in torch.nonzero(prompts.present.any(dim=1)).flatten().tolist():
        for coords, labels, target in zip(
            prompts.coords[image], prompts.labels[image], prompts.targets[image], strict=True
        ):
            rows, columns = torch.nonzero(target > 0, as_tuple=True)
            if labels[0] == 2:
                low, high = torch.stack([columns.min(), rows.min()]) * 4, torch.stack([columns.max(), rows.max()]) * 4
                assert ((coords[0] - low >= 0) & (coords[0] - low < 4)).all()
                assert ((coords[1] - high > 0) & (coords[1] - high <= 4)).all()
            else:
                assert target[int(coords[0, 1] / 4), int(coords[0, 0] / 4)] > 0


def test_drawing_repeats_with_the_same_generators(tmp_path):
    pictures = [ellipse_picture(seed) for seed in range(3)]
    draws = [
        draw_batch(config(tmp_path), pictures, [0, 1], [np.random.default_rng(i) for i in range(2)], 128, 64)
        for _ in range(2)
    ]
    assert torch.equal(draws[0][0], draws[1][0])
    assert torch.equal(draws[0][1].targets, draws[1][1].targets)


def test_trivial_masks_of_a_rectangle():
    mask = np.zeros((40, 50), bool)
    mask[10:30, 5:45] = True
    scores = trivial([Subject(np.zeros((40, 50, 3), np.uint8), [mask])])
    assert scores["filled_box"] == 1
    assert scores["ellipse"] == pytest.approx(np.pi / 4, abs=0.03)


def test_accuracy_covers_both_prompts_and_the_best_of_three_is_no_worse():
    subjects = held_out_scenes(1, 5, 64)
    scores = accuracy(build("bundled_v2").eval(), subjects)
    assert 0 <= scores["box_miou"] <= scores["box_best_miou"] <= 1
    assert 0 <= scores["click_miou"] <= scores["click_best_miou"] <= 1


@pytest.mark.slow
def test_training_writes_its_log_and_resumes(tmp_path, monkeypatch):
    published_weights(tmp_path / "lite0.pth")
    (tmp_path / "images").mkdir()
    images, annotations = [], []
    for number in range(60):
        picture = ellipse_picture(number)
        cv2.imwrite(str(tmp_path / "images" / f"{number}.png"), picture.image)
        mask = np.zeros((96, 96), bool)
        part = picture.instances[0]
        mask[part.y : part.y + part.mask.shape[0], part.x : part.x + part.mask.shape[1]] = part.mask
        images.append({"id": number, "file_name": f"{number}.png", "height": 96, "width": 96})
        annotations.append({"id": number, "image_id": number, "category_id": 1, "segmentation": masks.encode(mask)})
    content = {"images": images, "annotations": annotations, "categories": [{"id": 1, "name": "ellipse"}]}
    (tmp_path / "instances.json").write_text(json.dumps(content))
    train, validation = photos.split(tmp_path, "instances.json", "images")
    assert (len(train), len(validation)) == (20, 40)
    assert not {item.key for item in train} & {item.key for item in validation}
    monkeypatch.setattr("pipeline.train_teacher.mixed.HELD_OUT_SCENES", 1)
    run = tmp_path / "run"
    sam = train_mixed(config(tmp_path), run)
    assert averaged(run / "checkpoint.pt")[1] == 2
    assert all(parameter.isfinite().all() for parameter in sam.parameters())
    longer = config(tmp_path).model_copy(update={"measure_every_s": 0.0})
    optimizer = longer.optimizer.model_copy(update={"steps": 3})
    train_mixed(longer.model_copy(update={"optimizer": optimizer}), run)
    records = [json.loads(line) for line in (run / "log.jsonl").read_text().splitlines()]
    assert any(record.get("step") == 2 and "teacher/loss" in record for record in records)
    assert any(record.get("data") == "photographs" and "box_miou" in record for record in records)
