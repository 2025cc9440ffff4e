"""`bench serve`, with few requests."""

import json

import pytest

from pipeline.__main__ import main
from pipeline.serve import load

FEW = "--runtimes torch --precisions fp32 --threads 1 --runs 1 --rounds 1 --warmup 0 --max-foreign-load 1 --json"


@pytest.mark.slow
def test_a_kept_embedding_and_batches_are_rows(monkeypatch, capsys):
    monkeypatch.setattr(load, "CLIENTS", 2)
    monkeypatch.setattr(load, "REQUESTS", 2)
    assert main(["bench", "serve", *FEW.split()]) == 0
    rows = json.loads(capsys.readouterr().out)
    rows = rows if isinstance(rows, list) else rows["rows"]
    names = [row["name"].partition(" ")[2] for row in rows]
    assert names == ["image each time", "kept embedding, unbatched", "kept embedding"]
    assert rows[0]["speedup"] == 1
