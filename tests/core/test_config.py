import os

import pytest

from pipeline.core.config import Config, find, read_params, section
from pipeline.core.errors import InputError


class Part(Config):
    steps: int
    lr: float
    feature_layers: tuple[int, ...] = ()


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"steps": 1, "lr": 0.1, "lrate": 1}, "unknown key 'lrate'"),
        ({"steps": 1, "lr": 0.1, "taps": []}, "unknown key 'taps': it was renamed to 'feature_layers'"),
        ({"steps": 1}, "key 'lr' is missing"),
        ({"steps": "1", "lr": 0.1}, "key 'steps' is '1'"),
        ({"steps": True, "lr": 0.1}, "key 'steps' is True"),
    ],
)
def test_a_wrong_section_is_refused_with_its_file_section_and_key(values, says):
    with pytest.raises(InputError, match=r"params\.yaml, section 'a\.b'") as refused:
        section({"a": {"b": values}}, "a.b", Part)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_right_section_is_read():
    assert section({"a": {"steps": 2, "lr": 1}}, "a", Part) == Part(steps=2, lr=1.0)


def test_an_absent_section_is_named_with_what_there_is():
    with pytest.raises(InputError, match=r"no section 'a\.c': 'c' is missing; available: b"):
        find({"a": {"b": 1}}, "a.c")


@pytest.mark.parametrize(("text", "says"), [("a: [", "not valid YAML"), ("- 1", "must hold sections, not list")])
def test_a_broken_file_is_refused_in_one_line(tmp_path, text, says):
    path = tmp_path / "params.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=says) as refused:
        read_params(path)
    assert "\n" not in str(refused.value)


def _loop(path):
    path.symlink_to(path)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda path: path.mkdir(), "Is a directory"),
        (os.mkfifo, "Is a FIFO"),
        (_loop, "symbolic links"),
        (lambda path: path.write_bytes(b"a: \xff"), "not UTF-8"),
    ],
    ids=["directory", "fifo", "link loop", "latin-1"],
)
def test_what_is_no_text_file_is_refused_in_one_line(tmp_path, make, says):
    path = tmp_path / "params.yaml"
    make(path)
    with pytest.raises(InputError, match=f"{path} .*{says}.*preset demo") as refused:
        read_params(path)
    assert "\n" not in str(refused.value)


def test_an_absent_file_says_how_to_make_one(tmp_path):
    with pytest.raises(InputError, match="preset demo"):
        read_params(tmp_path / "params.yaml")
