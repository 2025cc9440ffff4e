import inspect
from pathlib import Path

import grimp
import pytest

from pipeline.artifact import Contents
from pipeline.config import Config, read_params
from pipeline.stage import dvc_yaml
from pipeline.stages import STAGES

ROOT = Path(__file__).parents[1]
FRAME = {f"pipeline.{name}" for name in ("artifact", "config", "errors", "log", "progress", "stage")} | {"pipeline"}
each_stage = pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)


@pytest.fixture(scope="module")
def graph():
    return grimp.build_graph("pipeline")


def test_dvc_yaml_is_what_the_stages_say():
    assert (ROOT / "dvc.yaml").read_text() == dvc_yaml(STAGES), "run `make dvc.yaml`"


@each_stage
def test_a_verb_takes_what_its_stage_hands_over(stage):
    signature = inspect.signature(stage.function)
    wanted = {"config", "out", "log", *stage.over, *(need.name for need in stage.needs)}
    assert set(signature.parameters) == wanted
    assert issubclass(signature.parameters["config"].annotation, Config)
    assert signature.return_annotation is Contents


@each_stage
def test_every_module_a_stage_imports_is_a_dvc_dependency(stage, graph):
    package = {stage.module} | graph.find_descendants(stage.module)
    imported = set(package)
    for module in package:
        imported |= graph.find_upstream_modules(module)
    declared = {dep.removesuffix(".py").replace("/", ".") for dep in stage.to_dvc()["deps"]}
    missing = {m for m in imported - FRAME if not any(m == d or m.startswith(f"{d}.") for d in declared)}
    # A package's own __init__ is imported with anything in it.
    assert {m for m in missing if not any(d.startswith(f"{m}.") for d in declared)} == set()


@each_stage
def test_every_declared_source_exists(stage):
    missing = [path for path in stage.code if not (ROOT / path).exists()]
    assert not missing


@pytest.mark.parametrize(
    "path", [ROOT / "params.yaml", *sorted((ROOT / "presets").glob("*.yaml"))], ids=lambda p: p.stem
)
def test_every_section_of_params_and_presets_is_known(path):
    params = read_params(path)
    for stage in STAGES:
        for keys in stage.repetitions(params):
            stage.config(params, keys)
