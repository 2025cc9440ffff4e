import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.core import log_files


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(log_files.DEBUG, raising=False)


_PROGRAM = """
import os, subprocess, sys
from pipeline.core import log_files
with log_files.redirected("a flow") as (terminal, log):
    print("own")
    os.write(2, b"of a library\\n")
    subprocess.run([sys.executable, "-c", "print('of a child')"], check=True)
    print("progress", file=terminal)
print("after", log)
"""


@pytest.mark.parametrize("debug", [False, True])
def test_output_of_the_process_and_its_children_goes_to_the_file_unless_debugging(tmp_path, debug):
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    environment |= {log_files.DEBUG: "1"} if debug else {}
    done = subprocess.run(
        [sys.executable, "-c", _PROGRAM], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    lines = ("own\n", "of a library\n", "of a child\n")
    if debug:
        assert all(line in done.stdout + done.stderr for line in lines)
        assert done.stdout.endswith("after None\n")
        return
    name = done.stdout.removeprefix("after ").removesuffix("\n")
    assert done.stdout == f"after {name}\n"
    assert done.stderr == "progress\n"
    text = (tmp_path / name).read_text()
    assert name.startswith(".logs/a-flow-")
    assert all(line in text for line in lines)


def test_an_exception_is_written_to_the_file_and_names_it(capfd):
    with pytest.raises(ZeroDivisionError) as failed, log_files.redirected("a flow") as (_, log):
        raise ZeroDivisionError
    assert "Traceback (most recent call last)" in log.read_text()
    assert log_files.write_traceback("other", failed.value) == log
    assert capfd.readouterr() == ("", "")


def test_the_newest_files_of_a_name_stay(tmp_path):
    (tmp_path / ".logs").mkdir()
    for number in range(15):
        (tmp_path / f".logs/release-2020{number:02}.log").touch()
    (tmp_path / ".logs/distill@small.log").touch()
    with log_files.redirected("release"):
        pass
    names = sorted(path.name for path in (tmp_path / ".logs").iterdir())
    assert len(names) == 11
    assert names[:2] == ["distill@small.log", "release-202006.log"]
