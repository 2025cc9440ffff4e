import json

import pytest
import torch

from pipeline import training
from pipeline.artifact import Card, Contents, digest
from pipeline.data.embeddings import Embeddings
from pipeline.data.shards import Shards
from pipeline.distill import DistillConfig, Task, distill, student_of
from pipeline.distill.embedding import held_out_error
from pipeline.embed import EmbedConfig, embed
from pipeline.errors import InputError
from pipeline.log import silent
from pipeline.models import build
from pipeline.models.sam import save_checkpoint
from pipeline.models.students import load_checkpoint
from pipeline.prepare import PrepareConfig, prepare
from pipeline.prepare.sources import Procedural

CPU = torch.device("cpu")
STUDENT = "efficientvit_sam_nano"


EMBEDDING = {"kind": "embedding", "distance": "mse"}


def recipe(steps=3, device="cpu", options=None, kind=EMBEDDING, **optimizer):
    values = {"steps": steps, "lr": 0.003, "warmup_steps": 2, "cooldown_steps": 2, "weight_decay": 0.0}
    values |= {"schedule": "trapezoid", "clip_norm": 1.0, "ema_decay": 0.5, "seed": 0, "accumulate": 1}
    values |= {"autocast": "none", "compile": False, "checkpoint_every": 1} | optimizer
    rest = {"options": options or {}, "recipe": kind, "batch": 4, "device": device}
    return DistillConfig.model_validate(rest | {"optimizer": values})


def error(sam, inputs):
    images, embeddings = Shards(inputs["prepare"], "calibration"), Embeddings(inputs["embed"])
    return held_out_error(task(sam, inputs, images, embeddings))


def task(sam, inputs, images, embeddings, config=None):
    config = config or recipe()
    where = {"device": CPU, "log": silent, "checkpoint": None}
    return Task(sam=sam, teacher=inputs["teacher"], images=images, embeddings=embeddings, config=config, **where)


def sealed(directory, kind, model=None):
    Card.seal(directory, Contents(kind=kind, model=model), {})
    return directory


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A dataset, a teacher with weights nobody trained, and its embeddings."""
    root = tmp_path_factory.mktemp("inputs")
    places = {name: root / name for name in ("prepare", "teacher", "embed")}
    for place in places.values():
        place.mkdir()
    source = Procedural(kind="procedural", side_px=64, train=6, calibration=2, validation=1, seed=0, jpeg_quality=90)
    prepare(PrepareConfig(data=__file__, shard_images=4, source=source), out=places["prepare"], log=silent)
    sealed(places["prepare"], "dataset")
    save_checkpoint(build("bundled", seed=1), places["teacher"])
    sealed(places["teacher"], "checkpoint", "bundled")
    config = EmbedConfig(store=str(root / "store"), batch=4, device="cpu", taps=[1, 4])
    embed(config, prepare=places["prepare"], teacher=places["teacher"], out=places["embed"], log=silent)
    sealed(places["embed"], "embeddings")
    return places


@pytest.fixture
def run(tmp_path, inputs, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def go(name="out", config=None, log=silent, student=STUDENT):
        out = tmp_path / name
        out.mkdir()
        contents = distill(config or recipe(), student=student, **inputs, out=out, log=log)
        assert (contents.kind, contents.model) == ("checkpoint", student)
        Card.seal(out, contents, {})
        return out

    return go


def test_distillation_lowers_the_error_on_images_it_never_saw_and_touches_only_the_image_encoder(run, inputs):
    fresh = student_of(inputs["teacher"], STUDENT, seed=0, options={})
    before = error(fresh, inputs)
    out = run(config=recipe(steps=25))
    after = json.loads((out / "metrics.json").read_text())
    assert after["embedding_mse"] < 0.7 * before["embedding_mse"]
    assert after["embedding_cosine"] > before["embedding_cosine"] + 0.1

    student, teacher = load_checkpoint(out).state_dict(), load_checkpoint(inputs["teacher"]).state_dict()
    shared = [key for key in student if not key.startswith("image_encoder.")]
    assert len(shared) > 100
    assert all(torch.equal(student[key], teacher[key]) for key in shared)
    learned = dict(fresh.image_encoder.named_parameters())
    assert not any(torch.equal(student[f"image_encoder.{key}"], value) for key, value in learned.items())


def test_metrics_are_those_of_the_weights_that_are_kept(run, inputs):
    out = run()
    again = error(load_checkpoint(out), inputs)
    assert json.loads((out / "metrics.json").read_text()) == pytest.approx(again, rel=1e-5)


def test_an_interrupted_run_ends_with_the_same_artifact_to_the_bit(run, tmp_path, monkeypatch):
    monkeypatch.setattr(training.loop, "LOG_EVERY", 2)

    def stop(metrics, step=None):
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("broken", recipe(steps=5), log=stop)
    assert len(list((tmp_path / ".checkpoints").iterdir())) == 1
    steps = []
    resumed = run("resumed", recipe(steps=5), log=lambda metrics, step=None: steps.append(step))
    assert steps[0] == 2
    assert not list((tmp_path / ".checkpoints").iterdir())
    assert digest(resumed) == digest(run("straight", recipe(steps=5)))


def test_a_students_options_decide_what_is_trained_and_are_on_its_card(run):
    options = {"attention": [[[64, 2]], [[256, 2], [32, 1]], [[64, 2]], [[256, 3]]]}
    out = run(config=recipe(1, options=options), student="sam_lightening_nano")
    assert Card.read(out).options == options
    blocks = load_checkpoint(out).image_encoder.blocks
    assert [[list(pair) for pair in block.attn.pairs] for block in blocks] == options["attention"]


def test_options_that_the_student_does_not_have_are_refused(run):
    with pytest.raises(InputError, match=f"{STUDENT} has no option 'attention': it has none"):
        run(config=recipe(options={"attention": []}))


@pytest.mark.parametrize("student", ["tinysam_nano", "sam_lightening_nano"])
def test_every_family_lowers_the_error_on_images_it_never_saw(run, inputs, student):
    fresh = student_of(inputs["teacher"], student, seed=0, options={})
    before = error(fresh, inputs)
    after = json.loads((run(config=recipe(25), student=student) / "metrics.json").read_text())
    assert after["embedding_mse"] < 0.7 * before["embedding_mse"]
    assert after["embedding_cosine"] > before["embedding_cosine"] + 0.1


def test_teacher_and_student_of_different_grids_are_refused_in_words(inputs):
    with pytest.raises(InputError) as caught:
        student_of(inputs["teacher"], "efficientvit_sam_l0", seed=0, options={})
    assert str(caught.value) == (
        "student efficientvit_sam_l0 has an image embedding of 64x64 cells of 1024 pixels, its teacher bundled one of "
        "16x16 cells of 256 pixels: choose nano students with the bundled teacher, full-size ones with vit_b, vit_l or "
        "vit_h (params.yaml)."
    )


def test_embeddings_of_another_teacher_are_refused(inputs, tmp_path):
    other = tmp_path / "teacher"
    other.mkdir()
    save_checkpoint(build("bundled", seed=2), other)
    sealed(other, "checkpoint", "bundled")
    with pytest.raises(InputError, match=r"embed was made by another teacher .* run `dvc repro embed`"):
        distill(recipe(), student=STUDENT, **inputs | {"teacher": other}, out=tmp_path, log=silent)


@pytest.mark.parametrize("device", ["abacus", "cuda:99"])
def test_a_device_that_is_not_there_is_named(run, device):
    with pytest.raises(InputError, match=rf"distill\.{STUDENT}\.device is '{device}', .*: set it to cpu"):
        run(config=recipe(device=device))


def test_a_saved_state_of_another_version_says_that_it_can_be_removed(run, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.distill.checkpoint_of", lambda *identity: tmp_path / "state.pt")
    torch.save({"module": {}}, tmp_path / "state.pt")
    with pytest.raises(InputError, match=r"state\.pt, where an interrupted run was to go on.*remove it to start anew"):
        run()
