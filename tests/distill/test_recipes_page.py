"""What docs/reference/recipes.md says can be put into params.yaml can be."""

import re
from pathlib import Path

import pytest
import yaml

from pipeline.align import AlignConfig
from pipeline.core.config import section
from pipeline.distill import DistillConfig
from pipeline.distill.schedule import layer_weights
from pipeline.models.students import STUDENTS
from pipeline.quantize import QuantizeConfig

ROOT = Path(__file__).parents[2]
SNIPPETS = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/reference/recipes.md").read_text(), re.DOTALL)
PRESETS = [path.read_text() for path in sorted((ROOT / "presets").glob("*.yaml"))]


@pytest.mark.parametrize("text", [*SNIPPETS, *PRESETS])
def test_every_recipe_is_valid_and_of_a_known_student(text):
    params = yaml.safe_load(text)
    assert params["distill"].keys() <= STUDENTS.keys()
    for verb, model in (("distill", DistillConfig), ("align", AlignConfig)):
        for student, settings in params.get(verb, {}).items():
            if settings is not None:
                section(params, f"{verb}.{student}", model)


@pytest.mark.parametrize(
    ("snippet", "name"),
    [*zip(SNIPPETS, ["efficientvit_sam_l0", "tinysam", "sam_lightening", "edge_sam", "edge_sam_loop"], strict=False)],
)
def test_the_recipe_of_each_paper_is_its_presets(snippet, name):
    shown = yaml.safe_load(snippet)
    preset = yaml.safe_load((ROOT / f"presets/{name}_sa1b.yaml").read_text())
    assert shown == {verb: preset[verb] for verb in ("distill", "align")}


def preset(name):
    return yaml.safe_load((ROOT / f"presets/{name}_sa1b.yaml").read_text())


@pytest.mark.parametrize(("size", "rate"), [("l0", 2e-6), ("l1", 2e-6), ("l2", 2e-6), ("xl0", 1e-6), ("xl1", 1e-6)])
def test_stage_2_of_efficientvit_sam_is_its_papers(size, rate):
    student = f"efficientvit_sam_{size}"
    params = preset(student)
    assert params["students"] == [student]
    config = section(params, f"align.{student}", AlignConfig)
    optimizer = config.optimizer
    assert (config.train, config.batch, config.masks, config.clicks, config.box_jitter) == ("all", 256, 64, [1, 10], 0)
    assert (optimizer.epochs, optimizer.lr, optimizer.schedule, optimizer.warmup_steps) == (2, rate, "cosine", 0)


def test_the_ramp_of_sam_lightening_moves_several_layers():
    recipe = section(preset("sam_lightening"), "distill.sam_lightening", DistillConfig).recipe
    layers = len(recipe.feature_layers)
    first, last = (
        layer_weights(step, layers=layers, focus=recipe.focus, ramp_steps=recipe.ramp_steps)
        for step in (0, recipe.ramp_steps)
    )
    assert layers == 6
    assert sum(a < b for a, b in zip(first, last, strict=True)) == 3


def test_tinysam_is_quantized_as_in_its_paper():
    params = preset("tinysam")
    config = section(params, "quantize", QuantizeConfig)
    search = config.search
    assert params["precisions"] == ["fp32", "int8", "w6a6"]
    assert (config.method, config.quantize_attention, config.decoder, config.keep) == ("search", True, "same", [])
    assert (config.calibration_images, search.candidates, search.rounds) == (8, 100, 3)


@pytest.mark.parametrize("text", PRESETS)
def test_presets_cache_the_blocks_that_their_recipes_compare(text):
    params = yaml.safe_load(text)
    recipes = [params["distill"][student]["recipe"] for student in params["students"]]
    needed = {teacher_layer for recipe in recipes for teacher_layer, _ in recipe.get("feature_layers", ())}
    assert needed <= set((params["embed"] or {}).get("feature_layers", ()))


def test_each_kind_of_recipe_is_shown():
    kinds = [yaml.safe_load(text)["distill"].popitem()[1]["recipe"]["kind"] for text in SNIPPETS]
    assert kinds == ["embedding", "full_stage", "layer_wise", "embedding", "prompt_in_the_loop", "embedding"]
