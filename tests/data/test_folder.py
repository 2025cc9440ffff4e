import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.errors import InputError
from pipeline.data.folder import LONGEST_KEY, image_files, unique_keys


@given(st.lists(st.text(min_size=1, max_size=120).map(lambda name: f"{name}.jpg"), unique=True))
def test_different_names_have_different_plain_keys(names):
    keys = unique_keys(names)
    assert len({key.lower() for key in keys}) == len(names)
    assert all(len(key) <= LONGEST_KEY for key in keys)
    assert all(character.isascii() and (character.isalnum() or character in "_-") for key in keys for character in key)


def test_a_plain_name_is_its_own_key_whatever_else_is_there():
    assert unique_keys(["000000000030.jpg"]) == ["000000000030"]
    assert unique_keys(["x.jpg", "b/y.jpg"])[0] == "x"


def test_the_same_name_with_two_suffixes_stays_two():
    first, second = unique_keys(["x.jpg", "x.png"])
    assert first.startswith("x-")
    assert second.startswith("x-")
    assert first != second


def test_images_are_found_in_subfolders_and_hidden_files_are_not(tmp_path):
    for name in ("b.PNG", "sub/a.jpg", ".hidden.jpg", ".git/c.jpg", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    assert image_files(tmp_path) == ["b.PNG", "sub/a.jpg"]


def test_an_empty_and_an_absent_folder_are_named(tmp_path):
    with pytest.raises(InputError, match="holds no images"):
        image_files(tmp_path)
    with pytest.raises(InputError, match="none is not a folder"):
        image_files(tmp_path / "none")
