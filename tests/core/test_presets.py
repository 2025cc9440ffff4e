from pathlib import Path

import pytest
import yaml

from pipeline.core import params as params_of_stages
from pipeline.core.config import Config, read_params
from pipeline.core.errors import InputError
from pipeline.core.presets import activate

DEMO = """# the demo
students: [a, b] # two
precisions:
  - fp32
  - int8
distill:
  a: {steps: 10, lr: 0.001} # quick
  b: &b
    steps: 20
  c: *b
"""


class DistillConfig(Config):
    steps: int
    lr: float = 0.5
    seed: int = 0


def check(params, names):
    params_of_stages.check([params_of_stages.Section("distill.*", DistillConfig)], params)


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("presets").mkdir()
    Path("presets/demo.yaml").write_text(DEMO)


def test_a_preset_becomes_params_byte_for_byte():
    activate("demo")
    assert Path("params.yaml").read_text() == DEMO


def test_changed_values_are_written_and_comments_kept():
    activate("demo", ["distill.a.steps=3", "distill.a.lr=1e-4", "students=[a]", "precisions=[int8]"])
    text = Path("params.yaml").read_text()
    assert yaml.safe_load(text)["distill"]["a"] == {"steps": 3, "lr": 0.0001}
    assert yaml.safe_load(text)["students"] == ["a"]
    assert yaml.safe_load(text)["precisions"] == ["int8"]
    assert all(comment in text for comment in ("# the demo", "# two", "# quick"))


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ("distill.a.step=3", "'distill.a': unknown key 'step': .*; available: lr, seed, steps"),
        ("distill.a=3", "'distill.a': "),
        ("distill.a.steps=many", "key 'steps' is 'many'"),
        ("distill.a.steps=1.5", "key 'steps' is 1.5"),
        ("distill.a.steps=[", "the value of 'distill.a.steps' is not valid YAML"),
        ("distill.a.steps", "not KEY=VALUE"),
    ],
)
def test_a_wrong_change_is_refused_and_params_stay(change, says):
    activate("demo")
    with pytest.raises(InputError, match=says):
        activate("demo", [change], check)
    assert Path("params.yaml").read_text() == DEMO


def test_a_key_that_the_preset_leaves_to_its_default_can_be_set():
    activate("demo", ["distill.a.seed=7"], check)
    assert read_params()["distill"]["a"] == {"steps": 10, "lr": 0.001, "seed": 7}


def test_a_change_in_a_shared_section_changes_only_the_one_that_is_named():
    for change, steps in (("distill.b.steps=1", {"b": 1, "c": 20}), ("distill.c.steps=1", {"b": 20, "c": 1})):
        activate("demo", [change], check)
        assert {name: read_params()["distill"][name]["steps"] for name in "bc"} == steps


@pytest.mark.parametrize("value", ["1e-4", "1e-05", "0.00001", "3"])
def test_a_number_is_read_back_as_it_was_given(value):
    activate("demo", [f"distill.a.lr={value}"], check)
    assert read_params()["distill"]["a"]["lr"] == float(value)


def test_an_unknown_preset_lists_the_known():
    with pytest.raises(InputError, match=r"presets/no\.yaml does not exist; there is demo"):
        activate("no")


@pytest.mark.parametrize("name", ["../presets/demo", "../x", "", ".", "demo\0", "presets/demo", "*"])
def test_a_path_is_no_name_of_a_preset(name):
    with pytest.raises(InputError, match="there is demo"):
        activate(name)


@pytest.mark.parametrize(
    "value", ["[" * 3000, "9" * 5000, ".inf", ".nan", "1:30", "{a: 1, a: 2}", "!!python/name:os.system"]
)
def test_a_hostile_value_is_refused_in_one_line(value):
    with pytest.raises(InputError, match=r"the value of 'distill\.a\.lr' is not valid YAML") as refused:
        activate("demo", [f"distill.a.lr={value}"], check)
    assert "\n" not in str(refused.value)


def test_a_key_of_3000_levels_is_refused():
    with pytest.raises(InputError, match="more than 32 levels deep"):
        activate("demo", [f"{'a.' * 3000}a=1"], check)


def test_a_directory_in_the_place_of_params_is_refused():
    Path("params.yaml").mkdir()
    with pytest.raises(InputError, match="is a directory: remove it"):
        activate("demo")


def test_a_link_loop_in_the_place_of_params_is_replaced():
    Path("params.yaml").symlink_to("params.yaml")
    activate("demo")
    assert Path("params.yaml").read_text() == DEMO


def test_params_that_somebody_edited_are_kept_and_others_are_not():
    activate("demo")
    assert not Path("params.yaml.before").exists()
    Path("params.yaml").write_text(DEMO.replace("steps: 10", "steps: 11"))
    assert activate("demo").endswith("the file before it is params.yaml.before")
    assert "steps: 11" in Path("params.yaml.before").read_text()
    assert Path("params.yaml").read_text() == DEMO
    assert "before" not in activate("demo", ["distill.a.steps=12"])


ROOT = Path(__file__).parents[2]


def test_the_shipped_params_are_the_demo():
    assert (ROOT / "params.yaml").read_text() == (ROOT / "presets" / "demo.yaml").read_text()
