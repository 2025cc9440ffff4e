import json

import cv2
import numpy as np
import pytest
import torch
import yaml

from pipeline.core.errors import InputError
from pipeline.models import build
from pipeline.models.decoder import decode
from pipeline.models.efficientnet_lite import EfficientNetLite
from pipeline.models.sam import WEIGHTS, load_weights
from pipeline.ops import masks
from pipeline.ops.geometry import PIXEL_MEAN, PIXEL_STD
from pipeline.runtime import load
from pipeline.teacher import BUNDLED
from pipeline.train_teacher import photographs as photos
from pipeline.train_teacher import train_teacher
from pipeline.train_teacher.composed import write_composed
from pipeline.train_teacher.frame import Picture, cutout
from pipeline.train_teacher.imagenet import trunk_state
from pipeline.train_teacher.training import (
    LOGIT_SCALE,
    TARGET_PX,
    Material,
    Start,
    TrainTeacherConfig,
    draw_batch,
    initial,
    scale_logits,
)
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


def config(**changes):
    optimizer = {
        "steps": 2,
        "lr": 0.001,
        "warmup_steps": 1,
        "ema_decay": 0.5,
        "autocast": "none",
        "checkpoint_every": 1,
    }
    values = {"scene_share": 0.5, "collage_share": 0.0, "exact_share": 0.5, "batch": 2, "prompts": 3}
    values |= {"correct_every": 2, "measure_every_s": 1e6, "optimizer": optimizer, "windows": [32, 8]}
    return TrainTeacherConfig.model_validate(values | changes)


def material():
    pictures = [ellipse_picture(seed) for seed in range(3)]
    return Material(pictures, pictures[:1], pictures)


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


def test_a_training_starts_from_bundled_weights_with_the_logits_it_trains(tmp_path):
    start = Start(published_weights(tmp_path / "lite0.pth"), BUNDLED["bundled_v2"] / WEIGHTS)
    own = initial(config(), start).state_dict()
    bundled = load_weights(build("bundled_v2"), BUNDLED["bundled_v2"] / WEIGHTS).state_dict()
    last = "mask_decoder.output_hypernetworks_mlps.0.layers.2.weight"
    torch.testing.assert_close(own[last] * LOGIT_SCALE, bundled[last])
    assert torch.equal(own["image_encoder.trunk.stem.0.weight"], bundled["image_encoder.trunk.stem.0.weight"])


@pytest.mark.parametrize(("side", "count"), [(128, 1), (64, 4), (32, 16)])
@pytest.mark.parametrize(("scene_share", "collage_share"), [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)])
def test_images_masks_and_prompts_of_a_batch_agree(scene_share, collage_share, side, count):
    rngs = [np.random.default_rng((3, place)) for place in range(4)]
    settings = config(scene_share=scene_share, collage_share=collage_share, exact_share=1.0, prompts=6)
    images, prompts, _ = draw_batch(settings, material(), [0, 1, 2, 0], rngs, 128, side)
    assert images.shape == (count, 3, side, side)
    assert images.isfinite().all()
    for image in torch.nonzero(prompts.present.any(dim=1)).flatten().tolist():
        for coords, labels, target in zip(
            prompts.coords[image], prompts.labels[image], prompts.targets[image], strict=True
        ):
            rows, columns = torch.nonzero(target > 0, as_tuple=True)
            if labels[0] == 2:
                first, last = torch.stack([columns.min(), rows.min()]), torch.stack([columns.max(), rows.max()])
                low, high = TARGET_PX * first, TARGET_PX * last
                assert ((coords[0] - low >= 0) & (coords[0] - low < TARGET_PX)).all()
                assert ((coords[1] - high > 0) & (coords[1] - high <= TARGET_PX)).all()
            else:
                assert target[int(coords[0, 1] / TARGET_PX), int(coords[0, 0] / TARGET_PX)] > 0


def test_drawing_repeats_with_the_same_generators():
    settings = config(scene_share=0.3, collage_share=0.3)
    draws = [
        draw_batch(settings, material(), [0, 1], [np.random.default_rng(i) for i in range(2)], 128, 64)
        for _ in range(2)
    ]
    assert torch.equal(draws[0][0], draws[1][0])
    assert torch.equal(draws[0][1].targets, draws[1][1].targets)


def test_cutouts_are_read_from_the_alpha_channel(tmp_path):
    picture = np.zeros((80, 100, 4), np.uint8)
    picture[20:60, 30:90] = (10, 20, 30, 255)
    cv2.imwrite(str(tmp_path / "object.png"), picture)
    cv2.imwrite(str(tmp_path / "opaque.png"), np.full((80, 100, 4), 255, np.uint8))
    cv2.imwrite(str(tmp_path / "without_alpha.png"), picture[..., :3])
    (read,) = photos.read_cutouts(tmp_path)
    (instance,) = read.instances
    assert (instance.x, instance.y, instance.mask.shape, int(instance.mask.min())) == (30, 20, (40, 60), 1)
    assert (read.image[30, 40] == (30, 20, 10)).all()
    # The colour continues beyond the mask, where pasting blends.
    assert np.abs(read.image[40, 28].astype(int) - (30, 20, 10)).max() < 12


def test_backgrounds_are_shrunk_and_have_no_instances(tmp_path):
    cv2.imwrite(str(tmp_path / "wide.jpg"), np.full((400, 1600, 3), 80, np.uint8))
    (read,) = photos.read_backgrounds(tmp_path)
    assert (read.image.shape, read.instances) == ((200, 800, 3), [])


def test_trivial_masks_of_a_rectangle():
    mask = np.zeros((40, 50), bool)
    mask[10:30, 5:45] = True
    scores = trivial([Subject(np.zeros((40, 50, 3), np.uint8), [mask])])
    assert scores["filled_box"] == 1
    assert scores["ellipse"] == pytest.approx(np.pi / 4, abs=0.03)


@torch.inference_mode()
def test_scaled_logits_give_the_same_masks_also_when_they_are_fed_back():
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(1, 256, 32, 32, generator=generator)
    coords, labels = torch.rand(1, 2, 2, 2, generator=generator) * 512, torch.tensor([[[1.0, 0.0], [2.0, 3.0]]])
    sam = build("bundled_v2", seed=1).eval()
    first, values = decode(sam, embedding, coords, labels)
    second, _ = decode(sam, embedding, coords, labels, first[:, :, :1])
    scale_logits(sam, 4.0)
    scaled, same_values = decode(sam, embedding, coords, labels)
    scaled_second, _ = decode(sam, embedding, coords, labels, scaled[:, :, :1])
    torch.testing.assert_close(scaled, 4 * first, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(same_values, values)
    torch.testing.assert_close(scaled_second, 4 * second, rtol=1e-4, atol=1e-3)


def test_accuracy_covers_both_prompts_and_the_best_of_three_is_no_worse():
    subjects = held_out_scenes(1, 5, 64)
    scores = accuracy(build("bundled_v2").eval(), subjects)
    assert 0 <= scores["box_miou"] <= scores["box_best_miou"] <= 1
    assert 0 <= scores["click_miou"] <= scores["click_best_miou"] <= 1


@pytest.fixture
def data(tmp_path):
    """60 photographs of one ellipse each, of which 40 are held out, and random ImageNet weights."""
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
    return tmp_path


def test_no_photograph_is_both_trained_on_and_held_out(data):
    train, validation = photos.split(data, "instances.json", "images")
    assert (len(train), len(validation)) == (20, 40)
    assert not {item.key for item in train} & {item.key for item in validation}


@pytest.mark.slow
def test_training_measures_resumes_and_saves_weights_with_a_card(data, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setattr("pipeline.train_teacher.bundling.SCENES", 1)
    monkeypatch.setattr("pipeline.train_teacher.monitor.SCENES", 1)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(yaml.safe_dump(config(measure_every_s=0.0).model_dump(mode="json")))
    monkeypatch.setattr("pipeline.train_teacher.RECIPE", recipe)

    def run(**changes):
        return train_teacher(
            data, cutouts=None, textures=[], imagenet=data / "lite0.pth", start=None, device="cpu", install=False,
            changes=changes,
        )  # fmt: skip

    first = run()
    assert "photographs box miou" in first
    out = tmp_path / "artifacts" / "train_teacher"
    run(steps=3)
    records = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert any(record.get("step") == 2 and "train_teacher/loss" in record for record in records)
    assert any(record.get("data") == "photographs" and "box_miou" in record for record in records)
    card = json.loads((out / "bundled_v2" / "training.json").read_text())
    assert (card["steps"], card["data"]["photographs"]) == (3, 20)
    assert {"photographs_box_miou", "photographs_ellipse", "scenes_click_miou"} <= card["metrics"].keys()
    assert load(out / "bundled_v2").image_size == 512
    recipe.write_text(yaml.safe_dump(config(prompts=5).model_dump(mode="json")))
    with pytest.raises(InputError, match="other settings"):
        run()


def test_composed_images_become_datasets_to_train_and_to_validate_on(data, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.train_teacher.composed.SCENES", 2)
    out = tmp_path / "bundled"
    written = write_composed(data, out, 3, cutouts=None, textures=[], seed=5)
    assert "photographs 40 images, 40 masks" in written
    for name, count in (("composed", 3), ("photographs", 40), ("scenes", 2)):
        dataset = json.loads((out / f"{name}.json").read_text())
        assert len(dataset["images"]) == count
        for image in dataset["images"]:
            assert cv2.imread(str(out / name / image["file_name"])).shape[:2] == (image["height"], image["width"])
        for annotation in dataset["annotations"]:
            mask = masks.decode(annotation["segmentation"])
            x, y, width, height = annotation["bbox"]
            assert list(masks.box(mask)) == [x, y, x + width, y + height]
            assert annotation["area"] == np.count_nonzero(mask)
    with pytest.raises(InputError, match="exists"):
        write_composed(data, out, 3, cutouts=None, textures=[], seed=5)
