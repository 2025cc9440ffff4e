import json
from dataclasses import replace

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from pipeline import training
from pipeline.core.artifact import Card, Contents, digest
from pipeline.core.errors import InputError
from pipeline.core.log import silent
from pipeline.data.embeddings import Embeddings
from pipeline.data.prompts import Prompts
from pipeline.data.shards import Shards
from pipeline.distill import DistillConfig, Task, distill, full_stage, learn, student_of
from pipeline.distill.embedding import held_out_error
from pipeline.distill.full_stage import decoder_terms, embedding_terms, harden, weigh
from pipeline.distill.layer_wise import layer_terms
from pipeline.embed import EmbedConfig, embed
from pipeline.models import build
from pipeline.models.bundled import BundledEncoder
from pipeline.models.decoder import decode_with_tokens
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
    arguments = {"device": CPU, "log": silent, "checkpoint": None}
    return Task(sam=sam, teacher=inputs["teacher"], images=images, embeddings=embeddings, config=config, **arguments)


def sealed(directory, kind, model=None):
    Card.seal(directory, Contents(kind=kind, model=model), {})
    return directory


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    """A dataset, a teacher with weights nobody trained, and its embeddings."""
    root = tmp_path_factory.mktemp("inputs")
    directories = {name: root / name for name in ("prepare", "teacher", "embed")}
    for directory in directories.values():
        directory.mkdir()
    source = Procedural(kind="procedural", side_px=64, train=6, calibration=2, validation=1, seed=0, jpeg_quality=90)
    prepare(PrepareConfig(data=__file__, shard_images=4, source=source), out=directories["prepare"], log=silent)
    sealed(directories["prepare"], "dataset")
    save_checkpoint(build("bundled", seed=1), directories["teacher"])
    sealed(directories["teacher"], "checkpoint", "bundled")
    config = EmbedConfig(store=str(root / "store"), batch=4, device="cpu", feature_layers=[1, 4])
    embed(config, prepare=directories["prepare"], teacher=directories["teacher"], out=directories["embed"], log=silent)
    sealed(directories["embed"], "embeddings")
    return directories


@pytest.fixture
def run(tmp_path, inputs, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def run_distill(name="out", config=None, log=silent, student=STUDENT):
        out = tmp_path / name
        out.mkdir()
        contents = distill(config or recipe(), student=student, **inputs, out=out, log=log)
        assert (contents.kind, contents.model) == ("checkpoint", student)
        Card.seal(out, contents, {})
        contents.remove_scratch()
        return out

    return run_distill


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
    with pytest.raises(InputError, match=f"{STUDENT} has no option 'attention': it has teacher"):
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
        "student efficientvit_sam_l0 has an image embedding of 64x64 cells of 1024 pixels, but its teacher bundled "
        "has 16x16 cells of 256 pixels: choose nano students with the bundled teacher, full-size ones with a "
        "full-size teacher (params.yaml)."
    )


def test_embeddings_of_another_teacher_are_refused(inputs, tmp_path):
    other = tmp_path / "teacher"
    other.mkdir()
    save_checkpoint(build("bundled", seed=2), other)
    sealed(other, "checkpoint", "bundled")
    with pytest.raises(InputError, match=r"embed was computed by a different teacher .* run `dvc repro embed`"):
        distill(recipe(), student=STUDENT, **inputs | {"teacher": other}, out=tmp_path, log=silent)


@pytest.mark.parametrize("device", ["abacus", "cuda:99", "meta", "hpu"])
def test_a_device_that_is_not_there_is_named(run, device):
    with pytest.raises(InputError, match=rf"distill\.{STUDENT}\.device is '{device}', .*: set it to cpu"):
        run(config=recipe(device=device))


def test_a_saved_state_of_another_version_says_that_it_can_be_removed(run, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.distill.checkpoint_of", lambda *identity: tmp_path / "state.pt")
    torch.save({"module": {}}, tmp_path / "state.pt")
    with pytest.raises(
        InputError, match=r"state\.pt of an interrupted run cannot be read.*delete it to start from scratch"
    ):
        run()


FULL_STAGE = {"kind": "full_stage", "train": "all", "alpha": 1.0, "beta": 1.0, "gamma": 1.0, "task_weight": 1.0}
FULL_STAGE |= {"hard_mask_weight": True, "rounds": 2, "prompts": 2, "decoder_lr_share": 0.5}
PROMPT_IN_THE_LOOP = {"kind": "prompt_in_the_loop", "loops": 3, "prompts": 2, "embedding_weight": 1.0}
LAYER_WISE = {
    "kind": "layer_wise",
    "feature_layers": [[1, 0], [4, 3]],
    "focus": 1,
    "ramp_steps": 4,
    "layer_weight": 1.0,
}


def losses_of(run, **changes):
    logged = []
    run(
        "logged",
        config=recipe(**changes),
        log=lambda metrics, step=None: logged.append(metrics),
        student="sam_lightening_nano",
    )
    return logged


def test_full_stage_trains_encoder_and_decoder_and_says_what_each_part_costs(run, inputs):
    out = run(config=recipe(3, kind=FULL_STAGE))
    before, after = load_checkpoint(inputs["teacher"]).state_dict(), load_checkpoint(out).state_dict()
    changed = {key.partition(".")[0] for key in after if key in before and not torch.equal(before[key], after[key])}
    assert changed == {"mask_decoder"}  # encoders have other keys; the prompt encoder is SAM's
    first = losses_of(run, kind=FULL_STAGE, steps=1)[0]
    names = {"loss", "embedding", "token", "mask", "task", "focal", "dice", "iou"}
    assert {f"distill/{name}" for name in names} <= first.keys()
    total = sum(first[f"distill/{name}"] for name in ("embedding", "token", "mask", "task"))
    assert first["distill/loss"] == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("train", ["encoder", "all"])
def test_prompt_in_the_loop_trains_the_encoder_and_if_asked_the_decoder(run, inputs, train):
    out = run(config=recipe(2, kind=PROMPT_IN_THE_LOOP | {"train": train}))
    before, after = load_checkpoint(inputs["teacher"]).state_dict(), load_checkpoint(out).state_dict()
    changed = {key.partition(".")[0] for key in after if key in before and not torch.equal(before[key], after[key])}
    assert changed == ({"mask_decoder"} if train == "all" else set())
    fresh = student_of(inputs["teacher"], STUDENT, seed=0, options={}).image_encoder
    learned = dict(fresh.named_parameters())
    assert not any(torch.equal(after[f"image_encoder.{key}"], value) for key, value in learned.items())


def test_prompt_in_the_loop_needs_no_loss_of_the_embedding(run):
    first = losses_of(run, kind=PROMPT_IN_THE_LOOP | {"embedding_weight": 0.0}, steps=1)[0]
    assert "distill/embedding" not in first
    assert first["distill/loss"] == pytest.approx(5 * first["distill/bce"] + 5 * first["distill/dice"], rel=1e-5)


def test_an_interrupted_prompt_in_the_loop_ends_with_the_same_artifact(run, monkeypatch):
    monkeypatch.setattr(training.loop, "LOG_EVERY", 2)
    config = recipe(4, kind=PROMPT_IN_THE_LOOP | {"mask_prompt_probability": 0.5})

    def stop(metrics, step=None):
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run("broken", config, log=stop)
    assert digest(run("resumed", config)) == digest(run("straight", config))


def test_each_term_of_full_stage_has_its_weight():
    config = recipe(kind=FULL_STAGE | {"alpha": 2.0, "beta": 3.0, "gamma": 5.0, "task_weight": 7.0}).recipe
    values = {"embedding": 1.0, "token": 10.0, "mask": 100.0, "task": 1000.0, "iou": 1e6}
    terms = weigh(config, {name: torch.tensor(value) for name, value in values.items()})
    assert terms.pop("loss") == 2 + 30 + 500 + 7000
    assert terms == values


def test_the_embeddings_error_is_a_share_of_the_teachers_scale_over_valid_cells():
    student = torch.tensor([[[1.0, 0.0], [0.0, 0.0]]]).repeat(2, 1, 1, 1).requires_grad_(True)
    teacher = torch.tensor([[[[4.0, 9.0], [9.0, 9.0]]], [[[-2.0, 6.0], [2.0, -6.0]]]], requires_grad=True)
    valid = torch.ones(2, 2, 2, dtype=torch.bool)
    valid[0, 1], valid[0, 0, 1] = False, False
    assert embedding_terms(teacher, teacher, valid)["embedding"] == 0
    error = embedding_terms(student, teacher, valid)["embedding"]
    error.backward()
    assert error.item() == pytest.approx((3 / 4 + (3 + 6 + 2 + 6) / (2 + 6 + 2 + 6)) / 2)
    assert student.grad[1].abs().min() > 0
    assert teacher.grad is None


def test_masks_where_only_the_teacher_is_right_count_twice_those_where_both_are():
    targets = torch.zeros(1, 2, 4, 4)
    targets[..., :2] = 1
    right, off = 2 * targets - 1, 1 - 2 * targets
    prompts = Prompts(torch.zeros(1, 2, 1, 2), torch.ones(1, 2, 1), targets, torch.ones(1, 2, dtype=torch.bool))

    def error(logits, weighted):
        config = recipe(kind=FULL_STAGE | {"hard_mask_weight": weighted}).recipe
        student, teacher = ((masks[:, :, None].expand(-1, -1, 4, -1, -1)) for masks in (logits, right))
        rest = torch.ones(1, 2, 4), torch.ones(1, 2, 5, 8)
        return decoder_terms(config, (student, *rest), (teacher, *rest), prompts)["mask"].item()

    # Off by 2 where the teacher's scale is 1; off by half of it, with the same mask; with and without weights.
    assert [error(off, False), error(right / 2, False)] == pytest.approx([2, 0.5])
    assert [error(off, True), error(right / 2, True)] == pytest.approx([2 * 1, 0.5 * 0.5], rel=1e-4)


def test_both_decoders_are_asked_where_clicks_have_moved_to_in_0_to_all_rounds(run, monkeypatch):
    rounds, max_coords = [], []

    def move(sam, embeddings, prompts, chance):
        assert not embeddings.requires_grad
        rounds.append(chance.shape[1])
        return prompts.coords + 1000

    def decoded(sam, embeddings, coords, labels):
        max_coords.append(coords.max().item())
        return decode_with_tokens(sam, embeddings, coords - 1000, labels)

    monkeypatch.setattr(full_stage, "harden", move)
    monkeypatch.setattr(full_stage, "decode_with_tokens", decoded)
    run(config=recipe(12, kind=FULL_STAGE))
    assert set(rounds) == {0, 1, 2}
    assert len(max_coords) == 2 * len(rounds)
    assert min(max_coords) >= 1000


def test_full_stage_can_leave_the_decoder_as_the_teachers(run, inputs):
    out = run(config=recipe(2, kind=FULL_STAGE | {"train": "encoder"}))
    before, after = load_checkpoint(inputs["teacher"]).state_dict(), load_checkpoint(out).state_dict()
    assert all(torch.equal(before[key], after[key]) for key in before if key.startswith("mask_decoder."))


def test_the_teachers_encoder_is_never_run(run, monkeypatch):
    def forward(self, images):
        raise AssertionError("the teacher's encoder was run")

    monkeypatch.setattr(BundledEncoder, "forward", forward)
    for kind in (EMBEDDING, FULL_STAGE, LAYER_WISE, PROMPT_IN_THE_LOOP):
        run(kind["kind"], recipe(1, kind=kind))


def test_terms_of_the_decoder_vanish_where_the_student_answers_as_the_teacher(inputs):
    sam, generator = load_checkpoint(inputs["teacher"]), torch.Generator().manual_seed(0)
    config = recipe(kind=FULL_STAGE).recipe
    targets = (torch.rand(1, 2, 64, 64, generator=generator) > 0.5).float()
    prompts = Prompts(
        torch.tensor([[[[30.0, 40.0], [90.0, 99.0]], [[70.0, 8.0], [0.0, 0.0]]]]),
        torch.tensor([[[2.0, 3.0], [1.0, -1.0]]]), targets, torch.ones(1, 2, dtype=torch.bool),
    )  # fmt: skip
    embedding = torch.randn(1, 256, 16, 16, generator=generator).requires_grad_(True)
    expected = decode_with_tokens(sam, embedding.detach(), prompts.coords, prompts.labels)
    same = decoder_terms(config, decode_with_tokens(sam, embedding, prompts.coords, prompts.labels), expected, prompts)
    assert same["token"] == same["mask"] == 0
    other = decode_with_tokens(sam, embedding + 0.1, prompts.coords, prompts.labels)
    terms = decoder_terms(config, other, expected, prompts)
    assert terms["token"] > 0
    assert terms["mask"] > 0
    (terms["token"] + terms["mask"]).backward()
    assert embedding.grad.abs().max() > 0
    absent = decoder_terms(config, other, expected, replace(prompts, present=torch.zeros(1, 2, dtype=torch.bool)))
    assert not any(absent.values())


def test_clicks_move_in_rounds_that_need_neither_encoder_nor_gradient(inputs):
    sam = load_checkpoint(inputs["teacher"])
    targets = torch.zeros(1, 3, 64, 64)
    targets[:, :, 10:50, 5:60] = 1
    coords = torch.full((1, 3, 2, 2), 128.0)
    labels = torch.tensor([[[1.0, -1.0], [1.0, -1.0], [2.0, 3.0]]])
    prompts = Prompts(coords, labels, targets, torch.ones(1, 3, dtype=torch.bool))
    embedding = torch.randn(1, 256, 16, 16, generator=torch.Generator().manual_seed(0)).requires_grad_(True)
    assert harden(sam, embedding, prompts, torch.zeros(1, 0, 3)) is coords
    moved = harden(sam, embedding, prompts, torch.full((1, 2, 3), 0.5))
    assert not moved.requires_grad
    assert torch.equal(moved[0, 2], coords[0, 2])
    for point in moved[0, :2, 0]:
        x, y = (point / 4).long().tolist()
        assert targets[0, 0, y, x] == 1


def test_layer_wise_logs_each_layer_and_its_weight_and_keeps_no_projection(run, inputs):
    logged = losses_of(run, kind=LAYER_WISE, steps=1)[0]
    assert (logged["distill/layer_0_weight"], logged["distill/layer_1_weight"]) == (1, 1)
    layers = (logged["distill/layer_0"] + logged["distill/layer_1"]) / 2
    assert logged["distill/loss"] == pytest.approx(logged["distill/embedding"] + layers, rel=1e-5)
    assert 0 < logged["distill/layer_0"] < 4


def test_layers_count_by_their_weights():
    valid = torch.ones(1, 1, 1, dtype=torch.bool)
    teacher = torch.tensor([1.0, -1.0]).reshape(1, 2, 1, 1).requires_grad_(True)
    near, far = ((factor * teacher.detach()).requires_grad_(True) for factor in (3.0, -3.0))
    equal = layer_terms([teacher, teacher], [teacher, teacher], valid, [1.0, 0.5])
    assert equal["layers"] == equal["layer_0"] == equal["layer_1"] == 0
    terms = layer_terms([near, far], [teacher, teacher], valid, [1.0, 0.5])
    # Normalised, one layer is its teacher's and the other off by 2 in each channel.
    assert terms["layer_0"].item() == pytest.approx(0, abs=1e-4)
    assert terms["layer_1"].item() == pytest.approx(4, rel=1e-4)
    assert terms["layers"].item() == pytest.approx(0.5 * 4 / 1.5, rel=1e-4)
    assert [terms["layer_0_weight"].item(), terms["layer_1_weight"].item()] == [1, 0.5]
    tilted = torch.tensor([1.0, 0.0, -3.0]).reshape(1, 3, 1, 1).requires_grad_(True)
    target = torch.tensor([0.0, 1.0, -1.0]).reshape(1, 3, 1, 1).requires_grad_(True)
    layer_terms([tilted], [target], valid, [1.0])["layers"].backward()
    assert tilted.grad.abs().max() > 0
    assert target.grad is None


def test_later_layers_gain_weight_while_it_trains(run, monkeypatch):
    monkeypatch.setattr(training.loop, "LOG_EVERY", 1)
    logged = losses_of(run, kind=LAYER_WISE | {"focus": 0}, steps=5)
    weights = [metrics["distill/layer_1_weight"] for metrics in logged if "distill/layer_1_weight" in metrics]
    assert weights == [0, 0, 0, 0.5, 1]


def test_layers_teach_the_encoder_and_not_their_projections_alone(run):
    """Without clipping, projections have no part in what the encoder learns but through its features."""
    changed = {"steps": 2, "clip_norm": 1e9}
    kinds = [LAYER_WISE | {"layer_weight": weight} for weight in (1e-12, 1.0)]
    outs = [
        run(str(number), recipe(kind=kind, **changed), student="sam_lightening_nano")
        for number, kind in enumerate(kinds)
    ]
    little, full = (load_checkpoint(out).image_encoder.state_dict() for out in outs)
    assert not torch.allclose(little["patch_embed.weight"], full["patch_embed.weight"], atol=1e-4)


def test_layer_wise_lowers_the_error_on_images_it_never_saw(run, inputs):
    before = error(student_of(inputs["teacher"], "sam_lightening_nano", seed=0, options={}), inputs)
    out = run(config=recipe(25, kind=LAYER_WISE), student="sam_lightening_nano")
    assert json.loads((out / "metrics.json").read_text())["embedding_mse"] < 0.7 * before["embedding_mse"]


def test_a_block_that_is_not_cached_says_what_to_set(run):
    with pytest.raises(
        InputError, match=r"of blocks 1, 4, not of the teacher's block 2: add it to embed\.feature_layers"
    ):
        run(config=recipe(kind=LAYER_WISE | {"feature_layers": [[2, 0]]}))


@pytest.mark.parametrize(
    "kind",
    [FULL_STAGE | {"rounds": 10}, FULL_STAGE | {"prompts": 65}, PROMPT_IN_THE_LOOP | {"loops": 0}, {"kind": "magic"}],
)
def test_recipes_are_strict(kind):
    with pytest.raises(ValueError, match="recipe"):
        recipe(kind=kind)


KINDS = {
    "embedding": EMBEDDING,
    "full_stage": {"kind": "full_stage", "prompts": 2, "rounds": 1},
    "full_stage without weights": {"kind": "full_stage", "prompts": 2, "beta": 0.0, "gamma": 0.0, "task_weight": 0.0},
    "layer_wise": {"kind": "layer_wise", "feature_layers": [[1, 1], [4, 3]], "ramp_steps": 2},
    "prompt_in_the_loop": {"kind": "prompt_in_the_loop", "prompts": 2},
    "prompt_in_the_loop, encoder": {"kind": "prompt_in_the_loop", "prompts": 2, "train": "encoder"},
}


@pytest.mark.parametrize("kind", KINDS)
def test_every_step_uses_every_trained_parameter(inputs, kind):
    # With several processes nothing searches for unused ones.
    unused = []

    def look(optimizer, arguments, keywords):
        unused.extend(p for group in optimizer.param_groups for p in group["params"] if p.grad is None)

    student = "sam_lightening_nano" if kind == "layer_wise" else STUDENT
    images, embeddings = Shards(inputs["prepare"], "train"), Embeddings(inputs["embed"])
    sam = student_of(inputs["teacher"], student, seed=0, options={})
    hook = register_optimizer_step_pre_hook(look)
    try:
        learn(task(sam, inputs, images, embeddings, recipe(kind=KINDS[kind], warmup_steps=1)))
    finally:
        hook.remove()
    assert unused == []
