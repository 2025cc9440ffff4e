import inspect
import os
from importlib.metadata import version
from pathlib import Path

import grimp
import pytest
import yaml

from pipeline.core import code
from pipeline.core.artifact import Contents
from pipeline.core.config import Config, read_params
from pipeline.core.dvc_files import dvc_yaml
from pipeline.models.students import STUDENTS, link
from pipeline.stages import STAGES, TEACHER, versions

ROOT = Path(__file__).parents[1]
each_stage = pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)


@pytest.fixture(scope="module")
def graph():
    return grimp.build_graph("pipeline")


def test_dvc_yaml_is_what_the_stages_say():
    assert (ROOT / "dvc.yaml").read_text() == dvc_yaml(STAGES), "run `make dvc.yaml`"


def test_versions_yaml_is_what_is_locked_and_installed():
    text = (ROOT / code.VERSIONS).read_text()
    assert text == versions(ROOT / "requirements.lock") + "\n", "run `make dvc.yaml`"
    for name, locked in yaml.safe_load(text).items():
        # A build for a GPU has a local part, which no lock names.
        assert version(name).partition("+")[0] in locked.split(" or ")


@each_stage
def test_a_verb_takes_what_its_stage_hands_over(stage):
    signature = inspect.signature(stage.function)
    wanted = {"config", "out", "log", *stage.matrix, *(dep.name for dep in stage.deps)}
    assert set(signature.parameters) == wanted
    assert issubclass(stage.config_type, Config)
    assert signature.return_annotation is Contents


@each_stage
def test_every_module_a_stage_imports_is_a_dvc_dependency(stage, graph):
    started = {stage.module} | {code.module(path) for path in stage.code if path.endswith(".py")}
    imported = started.union(*map(graph.find_upstream_modules, started))
    declared = {dep.removesuffix(".py").replace("/", ".") for dep in stage.to_dvc()["deps"]}
    missing = {
        m for m in imported if not code.of_frame(m) and not any(m == d or m.startswith(f"{d}.") for d in declared)
    }
    # A package's own __init__ is imported with anything in it.
    assert {m for m in missing if not any(d.startswith(f"{m}.") for d in declared)} == set()


@each_stage
def test_every_declared_source_exists(stage):
    assert code.closure(stage.module)
    for student in STUDENTS:
        assert not [
            path
            for path in [p.replace("${teacher.name}", "bundled") for p in stage.sources({"student": student})]
            if not (ROOT / path).exists()
        ]


@each_stage
def test_a_stage_that_builds_models_by_name_hangs_on_those_it_may_build(stage):
    builds = "pipeline/models/students.py" in code.closure(stage.module)
    of_teacher = stage is TEACHER or TEACHER in stage.deps
    assert ("deps/models/{student}" in stage.code) == (builds and "student" in stage.matrix)
    assert ("deps/models/${{teacher.name}}" in stage.code) == (builds and of_teacher)


def test_the_links_are_those_to_the_files_of_each_student(tmp_path):
    link(tmp_path / "models")

    def links(folder):
        return {path.relative_to(folder).as_posix(): os.readlink(path) for path in folder.rglob("*.py")}

    assert links(ROOT / "deps/models") == links(tmp_path / "models"), "run `make dvc.yaml`"
    assert (ROOT / "deps/models/tinysam/tiny_vit.py").samefile(ROOT / "pipeline/models/tiny_vit.py")


@pytest.mark.parametrize(
    "path", [ROOT / "params.yaml", *sorted((ROOT / "presets").glob("*.yaml"))], ids=lambda p: p.stem
)
def test_every_section_of_params_and_presets_is_known(path):
    params = read_params(path)
    for stage in STAGES:
        for keys in stage.repetitions(params):
            stage.config(params, keys)
