import json

import pytest
from pydantic import BaseModel, ConfigDict

from pipeline.core.errors import InputError
from pipeline.core.untrusted.json_file import DEEPEST, Coordinate, Extent, Id, Side, load, parse, shown, validated

HOSTILE = {
    "not json": (b"{", "is not JSON"),
    "empty": (b"", "is not JSON"),
    "not utf-8": (b'"\xff"', "is not JSON"),
    "utf-16": ('{"a": 1}'.encode("utf-16"), "is not JSON"),
    "deep lists": (b"[" * 100_000, "more than 64 levels deep"),
    "deep objects": (b'{"a":' * 100_000, "more than 64 levels deep"),
    "just too deep": (b"[" * (DEEPEST + 1) + b"]" * (DEEPEST + 1), "more than 64 levels deep"),
    "deep behind a string": (rb'["\"]]]]",' + b"[" * DEEPEST + b"]" * DEEPEST + b"]", "more than 64 levels deep"),
    "duplicate key": (b'{"a": 1, "b": 2, "a": 3}', "key 'a' occurs twice"),
    "duplicate key of an escape": (rb'{"a": 1, "\u0061": 3}', "key 'a' occurs twice"),
    "integer of 5,000 digits": (b"1" * 5000, "is not JSON"),
    "half a surrogate pair": (rb'["\ud800"]', "half of a surrogate pair"),
    "nul outside of a string": (b"[1\0]", "is not JSON"),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_hostile_json_is_refused_in_one_line(tmp_path, case):
    data, says = HOSTILE[case]
    path = tmp_path / "a.json"
    path.write_bytes(data)
    with pytest.raises(InputError, match=says) as refused:
        load(path, remedy="Write another.")
    assert str(refused.value).startswith(str(path))
    assert str(refused.value).endswith("Write another.")
    assert "\n" not in str(refused.value)
    assert len(str(refused.value)) < 500


def test_brackets_in_strings_do_not_count():
    value = ["[" * 100, '"' + "{" * 100, "\\" + "[" * 100]
    assert parse(json.dumps(value).encode(), "a") == value


def test_whole_surrogate_pairs_and_a_byte_order_mark_are_text():
    assert parse(b'\xef\xbb\xbf["\\ud83d\\ude00"]', "a") == ["\U0001f600"]


class Row(BaseModel):
    model_config = ConfigDict(strict=True)

    id: Id = 0
    height: Side = 1
    x: Coordinate = 0.0
    width: Extent = 0.0


@pytest.mark.parametrize(
    "row",
    [
        {"id": -1},
        {"id": 1 << 63},
        {"id": 10**400},
        {"id": 1.0},
        {"id": True},
        {"id": "1"},
        {"height": 0},
        {"height": 16_385},
        {"x": float("nan")},
        {"x": float("inf")},
        {"x": 10**400},
        {"x": 1e7},
        {"x": True},
        {"width": -0.1},
        {"width": []},
    ],
    ids=repr,
)
def test_numbers_out_of_bounds_are_refused_with_their_record(row):
    with pytest.raises(InputError, match=rf"^f: 1\.{next(iter(row))}: ") as refused:
        validated([{}, row], list[Row], "f")
    assert len(str(refused.value)) < 300


def test_any_value_is_shown_shortly():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    for value in (deep, 10**5000, "x" * 10_000, list(range(10_000)), {"a": deep}):
        assert len(shown(value)) <= 60
