import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.optim.optimizer import register_optimizer_step_pre_hook

from pipeline import training
from pipeline.align import AlignConfig, align
from pipeline.align.drawing import stacked
from pipeline.align.masks import final_batches
from pipeline.core.artifact import Card, Contents, digest
from pipeline.core.errors import InputError
from pipeline.core.log import silent
from pipeline.data.embeddings import Embeddings
from pipeline.data.instances import instances_of
from pipeline.data.shards import Shards
from pipeline.embed import EmbedConfig, embed
from pipeline.models import build
from pipeline.models.decoder import decode
from pipeline.models.sam import save_checkpoint
from pipeline.models.students import load_checkpoint
from pipeline.ops import masks
from pipeline.ops.geometry import to_input
from pipeline.prepare import PrepareConfig, prepare
from pipeline.prepare.sources import Folder, Procedural

STUDENT = "efficientvit_sam_nano"
CPU = torch.device("cpu")


def recipe(steps=5, device="cpu", keep=True, changes=None, **optimizer):
    values = {"steps": steps, "lr": 0.001, "warmup_steps": 2, "cooldown_steps": 2, "weight_decay": 0.0}
    values |= {"schedule": "trapezoid", "clip_norm": 1.0, "ema_decay": 0.5, "seed": 0, "accumulate": 1}
    values |= {"autocast": "none", "compile": False, "checkpoint_every": 1} | optimizer
    rest = {"train": "decoder", "batch": 4, "masks": 4, "clicks": [1, 1], "mask_loss": "focal_dice"}
    rest |= {"single_mask_share": 0.25, "flip": False, "keep_embeddings": keep, "device": device} | (changes or {})
    return AlignConfig.model_validate(rest | {"optimizer": values})


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    root = tmp_path_factory.mktemp("inputs")
    directories = {name: root / name for name in ("prepare", "teacher", "embed", "distill")}
    for directory in directories.values():
        directory.mkdir()
    source = Procedural(kind="procedural", side_px=64, train=5, calibration=1, validation=1, seed=0, jpeg_quality=90)
    prepare(PrepareConfig(data=__file__, shard_images=4, source=source), out=directories["prepare"], log=silent)
    Card.seal(directories["prepare"], Contents(kind="dataset"), {})
    save_checkpoint(build("bundled", seed=2), directories["teacher"])
    Card.seal(directories["teacher"], Contents(kind="checkpoint", model="bundled"), {})
    store = EmbedConfig(store=str(root / "store"))
    embed(store, prepare=directories["prepare"], teacher=directories["teacher"], out=directories["embed"], log=silent)
    Card.seal(directories["embed"], Contents(kind="embeddings"), {})
    save_checkpoint(build(STUDENT, seed=1), directories["distill"])
    Card.seal(directories["distill"], Contents(kind="checkpoint", model=STUDENT), {})
    return directories


@pytest.fixture
def run(tmp_path, inputs, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run_align(name="out", config=None, log=silent, **changes):
        out = tmp_path / name
        out.mkdir()
        contents = align(config or recipe(), student=STUDENT, **inputs | changes, out=out, log=log)
        assert (contents.kind, contents.model) == ("checkpoint", STUDENT)
        Card.seal(out, contents, {})
        contents.remove_scratch()
        return out

    return run_align


def metrics(out):
    return json.loads((out / "metrics.json").read_text())


def test_alignment_lowers_the_loss_and_changes_only_the_mask_decoder(run, inputs):
    little, more = run("little", recipe(1, lr=1e-9)), run("more", recipe(10))
    assert metrics(more)["train_loss"] < 0.9 * metrics(little)["train_loss"]
    before, after = load_checkpoint(inputs["distill"]).state_dict(), load_checkpoint(more).state_dict()
    changed = {key.partition(".")[0] for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"mask_decoder"}


def test_an_interrupted_run_ends_with_the_same_artifact_to_the_bit(run, tmp_path, monkeypatch):
    monkeypatch.setattr(training.loop, "LOG_EVERY", 4)

    def stop(reported, step=None):
        if step == 4:  # the last step: all steps but it are in the saved state
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("broken", log=stop)
    assert len(list((tmp_path / ".checkpoints").iterdir())) == 1
    resumed = run("resumed")
    assert not list((tmp_path / ".checkpoints").iterdir())
    assert digest(resumed) == digest(run("straight"))


def test_keeping_embeddings_saves_time_and_changes_nothing(run):
    assert digest(run("kept", recipe(3))) == digest(run("anew", recipe(3, keep=False)))


def test_a_single_step_is_enough_for_metrics(run):
    assert metrics(run(config=recipe(1))).keys() == {"train_loss", "train_focal", "train_dice", "train_iou"}


def masks_error(directory, inputs):
    """Mean distance of a student's mask logits to the teacher's, for the same boxes on the train images."""
    student, teacher = load_checkpoint(directory).eval(), load_checkpoint(inputs["teacher"]).eval()
    images, embeddings = Shards(inputs["prepare"], "train"), Embeddings(inputs["embed"])
    distances = []
    with torch.no_grad():
        for sample in images:
            instances = instances_of(sample.annotations, sample.image.shape[:2], 256, 64)
            boxes = torch.from_numpy(instances.boxes.all()).reshape(1, -1, 2, 2)
            labels = torch.tensor([2.0, 3.0]).expand(1, boxes.shape[1], 2)
            own = student.image_encoder(to_input(sample.image, student.input_size)[None])
            expected, _ = decode(teacher, embeddings.get(sample.key)[None].float(), boxes, labels)
            distances.append((decode(student, own, boxes, labels)[0] - expected).abs().mean())
    return float(torch.stack(distances).mean())


def test_with_a_teacher_weight_the_students_masks_approach_the_teachers(run, inputs):
    alone = run("alone", recipe(20))
    taught = run("taught", recipe(20, changes={"teacher_weight": 20.0}))
    assert metrics(taught).keys() == metrics(alone).keys() | {"train_teacher"}
    assert masks_error(taught, inputs) < 0.8 * masks_error(alone, inputs)


def test_without_a_teacher_weight_neither_teacher_nor_embeddings_are_read(run, tmp_path):
    nowhere = {"teacher": tmp_path / "none", "embed": tmp_path / "none"}
    assert digest(run("read")) == digest(run("unread", **nowhere))


def test_another_teachers_embeddings_are_refused(run, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    Card.seal(other, Contents(kind="checkpoint", model="bundled"), {})
    with pytest.raises(InputError, match=r"embed was computed by a different teacher than .*other: run `dvc repro emb"):
        run(config=recipe(changes={"teacher_weight": 1.0}), teacher=other)


def test_a_teacher_of_flipped_images_is_refused():
    with pytest.raises(ValueError, match="set teacher_weight to 0 or flip to false"):
        recipe(keep=False, changes={"teacher_weight": 1.0, "flip": True})


def test_another_students_weights_are_refused(run, inputs, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    Card.seal(other, Contents(kind="checkpoint", model="efficientvit_sam_l0"), {})
    with pytest.raises(InputError, match=rf"other contains efficientvit_sam_l0, not {STUDENT}: run `dvc repro`"):
        run(distill=other)


def test_a_students_options_stay_with_it(inputs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    student, options = "sam_lightening_nano", {"attention": [[[64, 1]], [[256, 2]], [[64, 3]], [[256, 1], [64, 2]]]}
    distilled, out = tmp_path / "distill", tmp_path / "out"
    distilled.mkdir()
    out.mkdir()
    save_checkpoint(build(student, options, seed=1), distilled)
    Card.seal(distilled, Contents(kind="checkpoint", model=student, options=options), {})
    contents = align(recipe(1), student=student, **inputs | {"distill": distilled}, out=out, log=silent)
    assert contents.options == options
    Card.seal(out, contents, {})
    before, after = (load_checkpoint(directory).image_encoder.state_dict() for directory in (distilled, out))
    assert all(torch.equal(after[key], value) for key, value in before.items())


def test_a_dataset_without_masks_is_refused(run, tmp_path):
    from PIL import Image

    (tmp_path / "mine").mkdir()
    for name in "abc":
        Image.fromarray(np.full((20, 30, 3), ord(name), np.uint8)).save(tmp_path / "mine" / f"{name}.jpg")
    source = Folder(
        kind="folder", images=".", calibration_images=1, validation_images=1, seed=0, min_area_px=1, jpeg_quality=90,
    )  # fmt: skip
    dataset = tmp_path / "dataset"
    dataset.mkdir()
    prepare(PrepareConfig(data="mine", shard_images=4, source=source), out=dataset, log=silent)
    Card.seal(dataset, Contents(kind="dataset"), {})
    with pytest.raises(InputError, match=r"dataset has no masks in its train split.*`prepare\.source`"):
        run(prepare=dataset)


def test_a_device_that_is_not_there_is_named(run):
    with pytest.raises(InputError, match=rf"align\.{STUDENT}\.device is 'abacus'"):
        run(config=recipe(device="abacus"))


def test_a_speck_that_leaves_nothing_on_the_raster_is_no_instance():
    speck, disk = np.zeros((2, 2000, 1500), bool)
    speck[700, 700] = True
    disk[300:900, 200:800] = True
    records = [{"segmentation": masks.encode(mask)} for mask in (speck, disk)]
    instances = instances_of(records, (2000, 1500), 256, 64)
    assert instances.coverages.shape == (1, 64, 64)
    assert instances.coverages[0].max() == 255
    assert instances.boxes.all().tolist() == [pytest.approx([25.6, 38.4, 102.4, 115.2], abs=0.2)]


def test_end_to_end_trains_encoder_and_decoder(run, inputs):
    changes = {"train": "all", "flip": True, "clicks": [1, 10], "mask_loss": "bce_points"}
    out = run(config=recipe(2, keep=False, changes=changes))
    before, after = (dict(load_checkpoint(directory).named_parameters()) for directory in (inputs["distill"], out))
    same = {key for key in before if torch.equal(before[key], after[key])}
    assert {key.partition(".")[0] for key in before.keys() - same} == {"image_encoder", "mask_decoder"}
    assert not any(key.startswith("image_encoder.") for key in same)
    assert metrics(out).keys() == {"train_loss", "train_bce", "train_dice", "train_iou"}


def test_what_was_reached_is_measured_in_parts_no_larger_than_those_of_training(run, monkeypatch):
    sizes = []

    def watched(directory):
        sam = load_checkpoint(directory)
        sam.image_encoder.register_forward_pre_hook(lambda module, inputs: sizes.append(len(inputs[0])))
        return sam

    monkeypatch.setattr("pipeline.align.load_checkpoint", watched)
    run(config=recipe(1, keep=False, changes={"train": "all"}, accumulate=2))
    assert sizes == [2, 2, 2, 2]
    whole, parted = (metrics(run(str(parts), recipe(1, lr=1e-12, accumulate=parts))) for parts in (1, 2))
    assert parted == pytest.approx(whole, rel=1e-4)


@given(st.integers(1, 10**7))
def test_the_final_measurement_is_at_most_a_fiftieth_of_the_training_and_bounded(steps):
    batches = final_batches(steps)
    assert 1 <= batches <= min(max(1, steps / 50), 250)


def test_an_image_is_mirrored_within_its_padding():
    image = np.random.default_rng(0).integers(1, 255, (40, 64, 3), np.uint8)
    plain, mirrored = (stacked([image], 64, [mirror]) for mirror in (False, True))
    assert plain.sizes.tolist() == [[40, 64]]
    assert torch.equal(mirrored.rgb[:, :40], plain.rgb[:, :40].flip(2))
    assert not mirrored.rgb[:, 40:].any()


def test_mirrored_images_have_mirrored_masks_and_boxes():
    mask = np.zeros((40, 80), bool)
    mask[5:30, 8:24] = True
    records = [{"segmentation": masks.encode(mask)}]
    plain, mirrored = (instances_of(records, (40, 80), 80, 20, mirror=mirror) for mirror in (False, True))
    assert np.array_equal(mirrored.coverages[0], plain.coverages[0][:, ::-1])
    assert plain.boxes.all().tolist() == [[8, 5, 24, 30]]
    assert mirrored.boxes.all().tolist() == [[56, 5, 72, 30]]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train": "all"}, "embeddings cannot be cached while the encoder is trained"),
        ({"flip": True}, "cached embeddings are of unflipped images"),
        ({"clicks": [3, 1]}, "must be the minimum and the maximum"),
        ({"masks": 65}, "less than or equal to 64"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        recipe(changes=changes)


@pytest.mark.parametrize("changes", [{}, {"train": "all"}, {"iou_weight": 0.0}, {"mask_loss": "bce_points"}])
def test_every_step_uses_every_trained_parameter(run, changes):
    # With several processes nothing searches for unused ones.
    unused = []

    def look(optimizer, arguments, keywords):
        unused.extend(p for group in optimizer.param_groups for p in group["params"] if p.grad is None)

    hook = register_optimizer_step_pre_hook(look)
    try:
        run(config=recipe(4, keep=False, changes=changes))
    finally:
        hook.remove()
    assert unused == []
