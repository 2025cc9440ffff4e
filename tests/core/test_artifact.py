import json
import os
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.core.artifact import CARD, Card, Contents, Refusal, digest, write_json
from pipeline.core.errors import InputError, Refused

CONTENTS = Contents(kind="checkpoint", model="small", options={"attention": [[[8, 2]], [[4, 1], [8, 4]]]})
NAMES = st.text("abc", min_size=1, max_size=4)


@given(files=st.dictionaries(NAMES, st.binary(max_size=8), min_size=1, max_size=4), changed=st.binary(max_size=8))
def test_the_digest_changes_exactly_when_names_or_bytes_do(tmp_path_factory, files, changed):
    first, second = tmp_path_factory.mktemp("a"), tmp_path_factory.mktemp("b")
    for name, content in files.items():
        (first / name).write_bytes(content)
    for name, content in reversed(files.items()):
        (second / name).write_bytes(content)
    assert digest(first) == digest(second)
    name = next(iter(files))
    (second / name).write_bytes(changed)
    assert (digest(first) == digest(second)) == (files[name] == changed)
    (second / name).write_bytes(files[name])
    os.rename(second / name, second / "renamed")
    assert digest(first) != digest(second)


def test_a_card_comes_back_as_it_was_written(tmp_path):
    (tmp_path / "model").write_text("weights")
    card = Card.seal(tmp_path, CONTENTS, {"b": "2", "a": "1"})
    assert Card.read(tmp_path) == card
    assert card.digest == digest(tmp_path)


def test_a_payload_that_was_changed_is_refused_in_one_line_with_the_command_that_brings_it_back(built, monkeypatch):
    monkeypatch.chdir(built.root)
    place = Path("artifacts/distill/small")
    sealed = Card.verified(place)
    assert sealed == Card.read(place)
    (place / "model.txt").write_text("another")
    with pytest.raises(InputError, match="artifacts/distill/small is damaged: its files have digest") as refused:
        Card.verified(place)
    assert "\n" not in str(refused.value)
    remedy = re.search("`dvc (checkout .*?)`", str(refused.value))
    assert built.dvc(*remedy[1].split()).returncode == 0
    assert Card.verified(place) == sealed


def test_a_refusal_is_on_its_own_card_and_no_other(tmp_path):
    for name in ("model", "refused"):
        (tmp_path / name).mkdir()
    Card.seal(tmp_path / "model", CONTENTS, {})
    assert "refusal" not in json.loads((tmp_path / "model" / CARD).read_text())
    found = Refusal.of(
        "export", Refused("export.max_difference", "it differs\nby inf", value=float("inf"), limit=0.001)
    )
    card = Card.seal(tmp_path / "refused", Contents(kind="refusal", refusal=found), {})
    assert Card.read(tmp_path / "refused") == card
    shown = {"stage": "export", "rule": "export.max_difference", "value": None, "limit": 0.001}
    assert json.loads((tmp_path / "refused" / CARD).read_text())["refusal"] == shown | {"reason": "it differs by inf"}
    assert str(found) == "export.max_difference: not finite, limit 0.001"
    assert str(found.model_copy(update={"value": 0.25})) == "export.max_difference: 0.25, limit 0.001"
    assert str(found.model_copy(update={"limit": None})) == "export.max_difference"


def test_reading_what_is_no_artifact_says_what_to_do(tmp_path):
    with pytest.raises(InputError, match=r"is not an artifact.*dvc repro"):
        Card.read(tmp_path)


@pytest.mark.parametrize("text", ["", "{}", "\xff", '{"kind": "checkpoint", "digest": "1", "parents": {}, "more": 1}'])
def test_a_card_this_version_cannot_read_is_refused_in_one_line(tmp_path, text):
    (tmp_path / CARD).write_bytes(text.encode("latin-1"))
    with pytest.raises(InputError, match="Recreate it") as refused:
        Card.read(tmp_path)
    assert "\n" not in str(refused.value)


def test_numbers_that_json_does_not_know_are_not_written(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "x.json", {"miou": float("nan")})
