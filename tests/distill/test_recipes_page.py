"""What docs/reference/recipes.md says can be put into params.yaml can be."""

import re
from pathlib import Path

import pytest
import yaml

from pipeline.align import AlignConfig
from pipeline.core.config import section
from pipeline.distill import DistillConfig
from pipeline.models.students import STUDENTS

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


@pytest.mark.parametrize("text", PRESETS)
def test_presets_cache_the_blocks_that_their_recipes_compare(text):
    params = yaml.safe_load(text)
    recipes = [params["distill"][student]["recipe"] for student in params["students"]]
    needed = {teacher_layer for recipe in recipes for teacher_layer, _ in recipe.get("feature_layers", ())}
    assert needed <= set(params["embed"].get("feature_layers", ()))


def test_each_kind_of_recipe_is_shown():
    kinds = [yaml.safe_load(text)["distill"].popitem()[1]["recipe"]["kind"] for text in SNIPPETS]
    assert kinds == ["embedding", "full_stage", "layer_wise", "embedding", "prompt_in_the_loop", "embedding"]
