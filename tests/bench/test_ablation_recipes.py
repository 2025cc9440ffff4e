"""The comparison of recipes: its table, what it refuses, and a measurement on a small dataset."""

import json
from itertools import pairwise
from pathlib import Path

import pytest
import yaml

from pipeline.bench.ablations.recipes import FEATURE_LAYERS, LADDER, OTHERS, RECIPES, recipes, table
from pipeline.bench.ablations.settings import RecipesSettings
from pipeline.core.artifact import Card, Contents
from pipeline.core.errors import InputError
from pipeline.core.log import silent
from pipeline.embed import EmbedConfig, embed
from pipeline.models import build
from pipeline.models.feature_layers import blocks
from pipeline.models.sam import save_checkpoint
from pipeline.prepare import PrepareConfig, prepare
from pipeline.prepare.sources import Procedural

STUDENT = "sam_lightening_nano"


def row(seed, box, recipe="plain"):
    figures = {"box_miou": box, "click_miou": 0.25, "cosine": 0.5}
    return {"data": "d", "student": STUDENT, "recipe": recipe, "steps": 3, "seed": seed} | figures


def test_the_table_has_the_mean_over_seeds_and_the_largest_distance_from_it():
    text = table([row(0, 0.5), row(1, 0.52), row(2, 0.51), row(0, 0.6, "layer_wise")])
    assert f"| {STUDENT} | plain | 3 | 51.00 ± 1.00 | 25.00 ± 0.00 | 0.5000 ± 0.0000 | 3 |" in text
    assert f"| {STUDENT} | layer_wise | 3 | 60.00 ± 0.00 | 25.00 ± 0.00 | 0.5000 ± 0.0000 | 1 |" in text


def test_unknown_recipes_list_the_known_ones():
    with pytest.raises(InputError, match=f"unknown recipe 'other': there is {', '.join(RECIPES)}"):
        recipes(RecipesSettings(students=(STUDENT,), recipes=("other",)))


def test_each_rung_of_the_ladder_adds_one_thing():
    changed = [{key for key in b if b[key] != a.get(key)} for a, b in pairwise(LADDER.values())]
    assert changed == [{"beta", "gamma"}, {"rounds"}, {"hard_mask_weight"}, {"task_weight", "train"}]
    first = LADDER["embedding"]
    assert first["beta"] == first["gamma"] == first["task_weight"] == 0


def test_the_loop_is_compared_with_the_full_stage_for_equally_many_prompts():
    assert {recipe.get("prompts", 4) for recipe in (*LADDER.values(), *OTHERS.values())} == {4}
    loop, with_embedding = OTHERS["prompt_in_the_loop"], OTHERS["prompt_in_the_loop_embedding"]
    assert with_embedding == {**loop, "embedding_weight": 1.0}


def test_blocks_that_are_compared_are_there():
    teacher = blocks(build("bundled").image_encoder)
    for student, pairs in FEATURE_LAYERS.items():
        own = blocks(build(student).image_encoder)
        assert all(theirs < len(teacher) and ours < len(own) for theirs, ours in pairs)


@pytest.fixture
def artifacts(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    places = {name: tmp_path / "artifacts" / name for name in ("prepare", "teacher", "embed")}
    for place in places.values():
        place.mkdir(parents=True)
    source = Procedural(kind="procedural", side_px=64, train=4, calibration=2, validation=1, seed=0, jpeg_quality=90)
    prepare(PrepareConfig(data=__file__, shard_images=4, source=source), out=places["prepare"], log=silent)
    Card.seal(places["prepare"], Contents(kind="dataset"), {})
    save_checkpoint(build("bundled", seed=1), places["teacher"])
    Card.seal(places["teacher"], Contents(kind="checkpoint", model="bundled"), {})
    settings = {"store": "store", "batch": 4, "device": "cpu", "feature_layers": []}
    embed(
        EmbedConfig(**settings), prepare=places["prepare"], teacher=places["teacher"], out=places["embed"], log=silent
    )
    optimizer = {
        "steps": 4, "lr": 0.001, "schedule": "trapezoid", "warmup_steps": 2, "cooldown_steps": 2, "weight_decay": 0.0,
        "clip_norm": 1.0, "ema_decay": 0.5, "accumulate": 1, "autocast": "none", "compile": False,
        "checkpoint_every": 9, "seed": 0,
    }  # fmt: skip
    section = {"options": {}, "recipe": {"kind": "embedding", "distance": "mse"}, "batch": 2, "device": "cpu"}
    params = {"embed": settings, "distill": {STUDENT: section | {"optimizer": optimizer}}}
    Path("params.yaml").write_text(yaml.safe_dump(params))
    return tmp_path / "artifacts"


def test_rows_are_measured_once_and_go_on_from_the_file(artifacts, tmp_path):
    out = tmp_path / "rows.jsonl"
    names = ("plain", "layer_wise", "full_stage", "prompt_in_the_loop", "prompt_in_the_loop_embedding")
    settings = RecipesSettings(students=(STUDENT,), recipes=names, seeds=(0,), steps=2, artifacts=artifacts, out=out)
    measured = recipes(settings)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert [(each["student"], each["recipe"]) for each in rows] == [
        ("teacher", ""),
        *((STUDENT, name) for name in names),
    ]
    assert all(0 <= each["box_miou"] <= 1 and -1 <= each["cosine"] <= 1 for each in rows)
    before = out.read_bytes()
    assert recipes(settings) == measured
    assert out.read_bytes() == before


def test_a_row_of_other_settings_another_teacher_or_an_earlier_version_is_measured_anew(artifacts, tmp_path):
    out = tmp_path / "rows.jsonl"
    settings = RecipesSettings(
        students=(STUDENT,), recipes=("plain",), seeds=(0,), steps=1, artifacts=artifacts, out=out
    )
    recipes(settings)
    first = [json.loads(line) for line in out.read_text().splitlines()]
    earlier = [{key: value for key, value in each.items() if key != "settings"} for each in first]
    out.write_text("".join(json.dumps(each) + "\n" for each in earlier))
    recipes(settings)
    assert [json.loads(line) for line in out.read_text().splitlines()][2:] == first

    params = yaml.safe_load(Path("params.yaml").read_text())
    params["distill"][STUDENT]["optimizer"]["lr"] = 0.01
    Path("params.yaml").write_text(yaml.safe_dump(params))
    recipes(settings)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 5
    assert rows[4]["cosine"] != rows[3]["cosine"]

    save_checkpoint(build("bundled", seed=2), artifacts / "teacher")
    Card.seal(artifacts / "teacher", Contents(kind="checkpoint", model="bundled"), {})
    config = EmbedConfig(store="store", batch=4, device="cpu", feature_layers=[])
    inputs = {name: artifacts / name for name in ("prepare", "teacher")}
    embed(config, **inputs, out=artifacts / "embed", log=silent)
    recipes(settings)
    assert len(out.read_text().splitlines()) == 7
