import json
import os

import pytest

from pipeline import promote
from pipeline.core.errors import InputError

ROW = {"model": "a", "precision": "fp32", "role": "student", "artifact": "artifacts/x", "digest": "0", "box_miou": 0.5}
HOSTILE = {
    "broken": '[{"model": ',
    "empty file": "",
    "no rows": "[]",
    "object": "{}",
    "rows that are text": '["a"]',
    "deep": "[" * 5000,
    "model of a number": json.dumps([ROW | {"model": 3}]),
    "no role": json.dumps([{k: v for k, v in ROW.items() if k != "role"}]),
    "nan": json.dumps([ROW | {"box_miou": float("nan")}]),
    "text for a figure": json.dumps([ROW | {"latency_ms": "1"}]),
    "figure of 400 digits": json.dumps([ROW | {"size_mib": 10**400}]),
    "duplicate key": json.dumps([ROW])[:-2] + ', "model": "b"}]',
}


@pytest.fixture(autouse=True)
def path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    promote.LEADERBOARD.parent.mkdir(parents=True)
    return promote.LEADERBOARD


@pytest.mark.parametrize("case", HOSTILE)
def test_a_broken_leaderboard_is_refused_in_one_line(path, case):
    path.write_text(HOSTILE[case])
    with pytest.raises(InputError, match=r"^artifacts/compare/leaderboard\.json.*Run `dvc repro`\.$") as refused:
        promote.leaderboard()
    assert "\n" not in str(refused.value)


def test_a_missing_one_says_how_to_make_it():
    with pytest.raises(InputError, match="does not exist: run `dvc repro`"):
        promote.leaderboard()


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir])
def test_what_is_no_file_is_refused_instead_of_waited_for(path, make):
    make(path)
    with pytest.raises(InputError, match="cannot be read"):
        promote.leaderboard()


def test_rows_are_read_with_all_their_keys(path):
    path.write_text(json.dumps([ROW | {"more": [1]}]))
    assert promote.leaderboard() == [ROW | {"more": [1]}]
