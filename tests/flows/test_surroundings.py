"""Releases in broken surroundings: one line, at once; and failed releases: at most 20 lines, the last the reason."""

import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest
import yaml

from flows.console import LINES

AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="needs the right to mount a file system")


def outcome(world, *arguments, **environment):
    """A release as a person starts it, with Prefect's usual log: exit code and all lines of its output."""
    done = world.command("flows.release", *arguments, PREFECT_LOGGING_LEVEL="INFO", **environment)
    return done.returncode, (done.stdout + done.stderr).splitlines()


def in_one_line(world, **environment):
    """The only line of a release that does not start; nothing has run."""
    start = time.monotonic()
    code, lines = outcome(world, **environment)
    assert code == 2, lines
    assert len(lines) == 1, lines
    assert lines[0].startswith("error: ")
    assert "resumes it" not in lines[0]  # nothing was started
    assert time.monotonic() - start < 60  # most of it imports
    assert not (world.root / "artifacts").exists()
    return lines[0]


def _garbage(path):
    path.write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 64)


def _conflict(path):
    path.write_text("<<<<<<< HEAD\nschema: '2.0'\n=======\n: : [\n")


@pytest.mark.parametrize(
    ("name", "make", "says"),
    [
        ("mlflow.db", _garbage, "MLflow's database .*mlflow.db is damaged"),
        ("mlflow.db", Path.mkdir, "MLflow's database .*mlflow.db is not a file"),
        ("dvc.lock", _conflict, "dvc.lock is not valid YAML"),
        (".git", shutil.rmtree, "cannot be used as a git repository"),
    ],
)
def test_a_broken_file_of_the_checkout_is_one_line(world, name, make, says):
    import re

    make(world.root / name)
    assert re.search(says, in_one_line(world))


def test_a_lock_file_that_was_cut_off_by_a_kill_is_repaired(built):
    lock = built.root / "dvc.lock"
    whole = lock.read_text()
    lock.write_text(whole[: whole.rindex("md5:") + 2])
    assert built.dvc("status").stderr.startswith("'./dvc.lock' is invalid")
    code, lines = outcome(built)
    assert code == 0, lines
    assert "dvc.lock was cut off when its writer was killed" in "".join(lines)
    assert yaml.safe_load(lock.read_text()) == yaml.safe_load(whole)


@pytest.mark.parametrize("arguments", [("--students", "nobody"), ("--students", "nobody", "--debug")])
def test_a_release_that_cannot_start_says_nothing_of_resuming(world, arguments):
    code, lines = outcome(world, *arguments)
    assert code == 2
    assert [line for line in lines if line.startswith("error: unknown student 'nobody'")]
    assert "resumes it" not in "".join(lines)


@pytest.mark.parametrize("name", ["MLFLOW_TRACKING_URI", "PREFECT_API_URL"])
@pytest.mark.parametrize("answers", [False, True])
def test_a_server_that_is_down_or_silent_is_one_line(world, name, answers):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        if answers:  # connections, but no request
            server.listen()
        line = in_one_line(world, **{name: f"http://127.0.0.1:{server.getsockname()[1]}/api"})
    assert ("did not answer within 5 s" if answers else "cannot be reached (Connection refused)") in line
    assert f"unset {name}" in line


def test_without_git_or_utf_8_a_release_is_one_line(world, tmp_path):
    tools = tmp_path / "bin"
    tools.mkdir()
    assert "git is not installed or not on PATH" in in_one_line(world, PATH=str(tools))
    line = in_one_line(world, LC_ALL="C", PYTHONCOERCECLOCALE="0", PYTHONUTF8="0")
    assert "set LC_ALL=C.UTF-8 or PYTHONUTF8=1" in line


def test_with_the_locale_c_a_stage_runs_in_a_path_that_is_not_ascii(world, world_at):
    root = world.root.with_name("Häuser 路")
    world.root.rename(root)
    done = world_at(root).verb("prepare", LC_ALL="C")
    assert done.returncode == 0, done.stderr


def test_from_a_subdirectory_the_line_names_the_checkout(world, world_at):
    (world.root / "presets").mkdir(exist_ok=True)
    below = world_at(world.root / "presets")
    for module, *arguments in (["flows.release"], ["pipeline", "prepare"], ["pipeline", "preset", "demo"]):
        done = subprocess.run(
            [shutil.which("python"), "-m", module, *arguments],
            cwd=below.root,
            env={**below.environment, "PYTHONPATH": str(world.root)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 2, done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
        assert f"`cd {world.root}`" in done.stderr


@pytest.fixture
def mounted(world, world_at):
    """Copy the world into a small file system, and give a function that mounts it read-only."""
    place = world.root.with_name("mounted")
    place.mkdir()
    done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "none", place], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
    yield world_at(shutil.copytree(world.root, place / "world", symlinks=True))
    subprocess.run(["umount", "--lazy", place], check=True)


@AS_ROOT
def test_a_full_or_read_only_disk_is_one_line(mounted):
    assert "MiB of free disk space, at least 512 MiB are needed" in in_one_line(mounted)
    subprocess.run(["mount", "-o", "remount,ro", mounted.root.parent], check=True)
    assert "cannot be written (Read-only file system)" in in_one_line(mounted)
    for arguments in (["prepare"], ["register"]):
        done = mounted.verb(*arguments)
        assert done.returncode == 2, done.stderr
        assert done.stderr.count("\n") == 1, done.stderr


@AS_ROOT
@pytest.mark.slow
def test_a_disk_that_fills_during_a_release_is_said_in_few_lines_and_not_retried(mounted):
    def free():
        return shutil.disk_usage(mounted.root).free

    (mounted.root.parent / "filling").write_bytes(b"x" * (free() - (1 << 20)))
    code, lines = outcome(mounted, SAM_DISTILLERY_FREE_MIB="0")
    assert code in (1, 2)
    assert len(lines) <= LINES, lines
    assert not any("Traceback" in line for line in lines)
    assert lines[-1].startswith("error: ")


def test_a_failed_stage_is_few_lines_and_the_last_names_the_reason_and_the_log(world):
    world.edit("end: well", "end: fault")
    code, lines = outcome(world)
    assert code == 1
    assert len(lines) <= LINES, lines
    assert not any("Traceback" in line for line in lines)
    assert lines[-1].startswith("error: distill@small: RuntimeError: the weights went to infinity.")
    stage_log, flow_log = (word.rstrip(".") for word in lines[-1].split() if word.startswith(".logs/"))
    assert "Traceback" in (world.root / stage_log).read_text()
    assert "Finished in state Failed" in (world.root / flow_log).read_text()
    assert lines[0] == f"log: {flow_log}"
