import os
import shutil
import socket
import sqlite3
import subprocess
import sys
import time
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest

from pipeline.core import preflight
from pipeline.core.config import read_params
from pipeline.core.errors import InputError
from pipeline.core.preflight import services
from pipeline.core.presets import activate


@pytest.fixture(autouse=True)
def _checkout(tmp_path, monkeypatch):
    for name in ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "SAM_DISTILLERY_FREE_MIB"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "dvc.yaml").touch()
    (tmp_path / "params.yaml").write_text("students: [a]\n")
    subprocess.run(["git", "init", "--quiet"], cwd=tmp_path, check=True)
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def silent_port():
    """A port that accepts connections and never answers."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server.getsockname()[1]


@pytest.fixture
def serve():
    """Start a server that answers every request with one status; gives its address."""
    servers = []

    def start(status):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(status)
                self.end_headers()

            def log_message(self, *_):
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        Thread(target=server.serve_forever, daemon=True).start()
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def refused(check, *arguments):
    """The line of a failed check."""
    with pytest.raises(InputError) as failed:
        check(*arguments)
    line = str(failed.value)
    assert "\n" not in line
    return line


def test_a_sound_checkout_passes_and_nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / ".prefect"))
    before = sorted(tmp_path.rglob("*"))
    preflight.check_release()
    preflight.check_stage()
    preflight.check_registry()
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("name", ["MLFLOW_TRACKING_URI", "PREFECT_API_URL"])
def test_a_server_must_answer_within_five_seconds(monkeypatch, silent_port, serve, name):
    check = preflight.check_tracking if name == "MLFLOW_TRACKING_URI" else preflight.check_prefect
    monkeypatch.setenv(name, f"http://user:secret@127.0.0.1:{silent_port}")
    start = time.monotonic()
    line = refused(check)
    assert 4 < time.monotonic() - start < 8
    assert f"at http://127.0.0.1:{silent_port} did not answer within 5 s: start it, or unset {name}" in line
    monkeypatch.setenv(name, "http://127.0.0.1:9")
    assert "cannot be reached (Connection refused): start it" in refused(check)
    monkeypatch.setenv(name, serve(503))
    assert "answered with status 503" in refused(check)
    for status in (200, 401, 404):  # a proxy or a login answers, too
        monkeypatch.setenv(name, serve(status))
        check()


def test_a_server_that_is_no_web_server_and_a_database_server_that_is_down_are_named(monkeypatch, tmp_path):
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()

        def answer():
            connection, _ = server.accept()
            connection.recv(1000)
            connection.sendall(b"SSH-2.0-server\r\n")
            connection.close()

        Thread(target=answer, daemon=True).start()
        line = refused(preflight.check_tracking, f"http://127.0.0.1:{server.getsockname()[1]}")
        assert "is not an HTTP server" in line
        preflight.check_tracking(f"postgresql+psycopg2://me:pw@127.0.0.1:{server.getsockname()[1]}/runs")
    line = refused(preflight.check_tracking, "postgresql://me:pw@127.0.0.1:9/runs")
    assert "MLflow's database at postgresql://127.0.0.1:9/runs cannot be reached" in line
    preflight.check_tracking(f"file:{tmp_path}/mlruns")


def _sound(path):
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE runs (id INTEGER PRIMARY KEY, name TEXT)")
    connection.executemany("INSERT INTO runs (name) VALUES (?)", [(f"run {i}" * 50,) for i in range(500)])
    connection.commit()
    connection.close()


def _damaged(path):
    _sound(path)
    content = bytearray(path.read_bytes())
    content[4096:8192] = bytes(range(256)) * 16
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (Path.mkdir, "is not a file"),
        (os.mkfifo, "is not a file"),
        (lambda path: path.write_text("hello"), "is not a SQLite database"),
        (lambda path: path.write_bytes(b"SQLite format 3\0" + bytes(range(256)) * 64), "is damaged"),
        (_damaged, "is damaged"),
    ],
)
def test_a_broken_database_is_named_with_what_to_do(make, says, monkeypatch):
    make(Path("mlflow.db"))
    line = refused(preflight.check_tracking)
    assert line.startswith(f"MLflow's database {Path('mlflow.db').absolute()} {says}")
    assert line.endswith("restore it from a copy, or move it away; a new one is then created.")
    Path("mlflow.db").rename("prefect.db")
    monkeypatch.setenv("PREFECT_HOME", str(Path.cwd()))
    assert says in refused(preflight.check_prefect)


def test_a_sound_database_passes_also_while_it_is_in_use(monkeypatch):
    monkeypatch.setattr(services, "TIMEOUT_S", 0.2)
    _sound(Path("mlflow.db"))
    preflight.check_tracking()
    with sqlite3.connect("mlflow.db") as writer:
        writer.execute("BEGIN EXCLUSIVE")
        preflight.check_tracking()
    writer.close()
    Path("mlflow.db").write_bytes(b"")
    preflight.check_tracking()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("<<<<<<< HEAD\nschema: '2.0'\n=======\n: : [\n", "is not valid YAML, line "),
        ("schema: '2.0'\nstages: [1, 2]\n", "does not hold a mapping of stages"),
        ("schema: '2.0'\nstages:\n  prepare: [1]\n", "does not hold a mapping of stages"),
        ("hello\n", "does not hold a mapping of stages"),
        (b"\xff\xfe\x00", "is not valid YAML"),
        ("[" * 3000, "is not valid YAML"),
    ],
)
def test_a_broken_lock_file_is_named(text, says):
    Path("dvc.lock").write_bytes(text if isinstance(text, bytes) else text.encode())
    line = refused(preflight.check_lock_file)
    assert says in line
    assert "restore it with `git checkout dvc.lock`" in line


def test_a_lock_file_that_is_a_directory_or_a_pipe_is_named():
    Path("dvc.lock").mkdir()
    assert "dvc.lock is not a file" in refused(preflight.check_lock_file)
    Path("dvc.lock").rmdir()
    os.mkfifo("dvc.lock")
    assert "dvc.lock is not a file" in refused(preflight.check_lock_file)
    Path("dvc.lock").unlink()
    Path("dvc.lock").write_text("schema: '2.0'\nstages:\n  prepare: {cmd: x}\n")
    preflight.check_lock_file()


def test_without_git_or_a_repository_a_release_does_not_start(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setenv("PATH", str(tmp_path))
        assert "git is not installed or not on PATH" in refused(preflight.check_git)
    shutil.rmtree(".git")
    line = refused(preflight.check_git)
    assert line.startswith(f"{tmp_path} cannot be used as a git repository (not a git repository")
    Path(".dvc").mkdir()
    Path(".dvc/config").write_text("[core]\n    no_scm = true\n")
    preflight.check_git()


def test_too_little_disk_is_named_with_the_minimum(monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: shutil._ntuple_diskusage(1 << 40, 0, 100 << 20))
    preflight.check_stage()
    line = refused(preflight.check_release)
    assert "has 100 MiB of free disk space, at least 512 MiB are needed" in line
    monkeypatch.setenv("SAM_DISTILLERY_FREE_MIB", "50")
    preflight.check_release()
    monkeypatch.setenv("SAM_DISTILLERY_FREE_MIB", "half")
    assert "must be a whole number of MiB, not 'half'" in refused(preflight.check_release)


def test_a_directory_that_cannot_be_written_is_named(monkeypatch):
    def read_only(*, dir):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", read_only)
    assert f"{Path.cwd()} cannot be written (Read-only file system)" in refused(preflight.check_stage)


def test_in_a_subdirectory_the_checkout_is_named_and_no_preset_is_advised(tmp_path, monkeypatch):
    (tmp_path / "presets").mkdir()
    (tmp_path / "presets/demo.yaml").write_text("students: [a]\n")
    monkeypatch.chdir(tmp_path / "presets")
    for check in (preflight.check_checkout, read_params, lambda: activate("demo")):
        line = refused(check)
        assert f"`cd {tmp_path}`" in line
        assert "preset demo" not in line
    assert not (tmp_path / "presets/params.yaml").exists()


@pytest.mark.parametrize(("utf8", "code"), [("0", 2), ("1", 0)])
def test_a_locale_without_utf_8_is_refused(utf8, code):
    command = "from pipeline.core.preflight import check_encoding; check_encoding()"
    program = f"from pipeline.core.failures import guarded; exit(guarded(lambda: exec({command!r}) or 0, 'x'))"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": utf8},
        capture_output=True,
        text=True,
    )
    assert done.returncode == code, done.stderr
    assert ("set LC_ALL=C.UTF-8 or PYTHONUTF8=1" in done.stderr) == bool(code)
