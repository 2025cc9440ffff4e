"""What changes a registered model: alone, told apart from a fault of the store, and recorded."""

import json
import os
import shutil
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from pipeline import promote
from pipeline.core.errors import GateError, InputError
from pipeline.promote import registry
from pipeline.promote.registry import CHALLENGER, CHAMPION, PREVIOUS, version_of
from pipeline.tracking import Store, database

NAME = "tiny"
PARAMS = f"""
promote:
  registered_model: {NAME}
  min_box_miou_retained: 0.9
  min_click_miou_retained: 0.9
  max_latency_ms: 20.0
  prefer: latency_ms
"""
GOOD = {"box_miou": 0.9, "click_miou": 0.8, "latency_ms": 10.0, "teacher_box_miou": 0.9, "teacher_click_miou": 0.8}
GOOD |= {"trivial_box_miou": 0.6, "trivial_click_miou": 0.4}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A database with three good versions: the first is champion, the second challenger."""
    root = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        store = Store.open()
    store.client.create_registered_model(NAME)
    for number in (1, 2, 3):
        run = store.start("register", {})
        for metric, value in GOOD.items():
            store.client.log_metric(run, metric, value)
        store.client.set_terminated(run)
        store.client.create_model_version(NAME, str(root), run, tags={"digest": str(number)})
    store.client.set_registered_model_alias(NAME, CHAMPION, "1")
    store.client.set_registered_model_alias(NAME, CHALLENGER, "2")
    return root / "mlflow.db"


@pytest.fixture
def store(made, tmp_path, monkeypatch):
    """A copy of it in the current folder."""
    monkeypatch.chdir(tmp_path)
    shutil.copy(made, "mlflow.db")
    Path("params.yaml").write_text(PARAMS)
    return Store.open()


def state(store):
    """Versions by alias, and the predecessor of each version."""
    aliases = {alias: str(v) for alias, v in store.client.get_registered_model(NAME).aliases.items()}
    before = {str(v.version): v.tags.get(PREVIOUS) for v in store.client.search_model_versions(f"name = '{NAME}'")}
    return aliases, {version: previous for version, previous in before.items() if previous}


def runs(store, name):
    found = store.client.search_runs([store.experiment], f"attributes.run_name = '{name}'")
    return [(run.info.status, run.data.tags, run) for run in found]


def test_no_such_alias_and_no_such_model_are_none(store):
    assert version_of(store.client, NAME, PREVIOUS) is None
    assert version_of(store.client, "another", CHAMPION) is None
    assert version_of(store.client, NAME, CHAMPION).version == 1


def test_a_server_that_cannot_be_reached_is_not_taken_for_an_absent_alias(monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    gone = MlflowClient(tracking_uri="http://127.0.0.1:9", registry_uri="http://127.0.0.1:9")
    with pytest.raises(MlflowException):
        version_of(gone, NAME, CHAMPION)
    with pytest.raises(MlflowException):
        registry.version_with(gone, NAME, "1")


@pytest.mark.parametrize("act", [promote.promote, promote.rollback])
def test_a_store_that_fails_stops_with_one_line_and_changes_nothing(store, act):
    before = state(store)
    with sqlite3.connect("mlflow.db") as connection:
        connection.execute("ALTER TABLE registered_model_aliases RENAME TO hidden")
    with pytest.raises(InputError, match="^MLflow at sqlite:.*mlflow.db failed: ") as failed:
        act()
    assert "\n" not in str(failed.value)
    with sqlite3.connect("mlflow.db") as connection:
        connection.execute("ALTER TABLE hidden RENAME TO registered_model_aliases")
    assert state(store) == before
    assert not runs(store, act.__name__)


def test_a_promotion_and_its_rollback_leave_runs_that_say_what_moved(store):
    promote.promote()
    assert state(store) == ({CHAMPION: "2", CHALLENGER: "2", PREVIOUS: "1"}, {"2": "1"})
    ((status, tags, run),) = runs(store, "promote")
    assert (status, tags["stage"], tags["passed"], tags["digest"]) == ("FINISHED", "promote", "true", "2")
    assert run.data.metrics["latency_ms"] == 10
    verdict = json.loads(Path(store.client.download_artifacts(run.info.run_id, "gate.json")).read_text())
    assert (verdict["challenger"], verdict["champion"], verdict["passed"]) == ("2", "1", True)
    promote.rollback()
    assert state(store) == ({CHAMPION: "1", CHALLENGER: "2"}, {})
    ((status, tags, _),) = runs(store, "rollback")
    assert (status, tags["stage"], tags["registered_model"]) == ("FINISHED", "rollback", NAME)
    assert (tags["version"], tags["replaced"], tags["digest"]) == ("1", "2", "1")


def test_a_refused_challenger_changes_nothing_and_its_run_tells_why(store):
    before = state(store)
    Path("params.yaml").write_text(PARAMS.replace("20.0", "5.0"))
    with pytest.raises(GateError, match="latency_ms 10 misses 5 by 5; version 1 stays champion"):
        promote.promote()
    assert state(store) == before
    ((status, tags, _),) = runs(store, "promote")
    assert (status, tags["passed"]) == ("FINISHED", "false")


def test_a_promotion_waits_for_another_process_and_goes_by_what_that_one_left(store):
    with database.lock(store.uri, NAME):
        waiting = subprocess.Popen(
            [sys.executable, "-c", "from pipeline import promote; print(promote.promote())"],
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        (lock,) = (str(path.absolute()) for path in Path().glob("mlflow.db.*.lock"))
        until = time.monotonic() + 120
        while lock not in (file.path for file in psutil.Process(waiting.pid).open_files()):
            assert time.monotonic() < until
            assert waiting.poll() is None, waiting.communicate()[0]
            time.sleep(0.05)
        # Meanwhile the holder of the lock promotes version 2, and version 3 becomes challenger.
        store.client.set_model_version_tag(NAME, "2", PREVIOUS, "1")
        store.client.set_registered_model_alias(NAME, CHAMPION, "2")
        store.client.set_registered_model_alias(NAME, CHALLENGER, "3")
    output, _ = waiting.communicate(timeout=120)
    assert "tiny version 3 is champion" in output
    assert state(store) == ({CHAMPION: "3", CHALLENGER: "3", PREVIOUS: "2"}, {"2": "1", "3": "2"})


def test_of_two_promotions_at_once_one_promotes_and_the_other_sees_it(store):
    with ThreadPoolExecutor(2) as pool:
        first, second = sorted(pool.map(lambda _: promote.promote(), range(2)), key=len)
    assert first == "tiny version 2 is already champion"
    assert second.startswith("tiny version 2 is champion (")
    assert state(store) == ({CHAMPION: "2", CHALLENGER: "2", PREVIOUS: "1"}, {"2": "1"})
    assert len(runs(store, "promote")) == 1


@pytest.mark.parametrize("act", [promote.promote, promote.rollback])
def test_a_change_that_another_machine_made_meanwhile_stays(store, monkeypatch, act):
    if act is promote.rollback:
        promote.promote()
    real = promote.running

    def meanwhile(*arguments):
        store.client.set_registered_model_alias(NAME, CHAMPION, "3")
        return real(*arguments)

    monkeypatch.setattr(promote, "running", meanwhile)
    with pytest.raises(InputError, match=r"another process moved alias champion meanwhile, from version \d to 3"):
        act()
    assert state(store)[0][CHAMPION] == "3"
    assert next(status for status, _, _ in runs(store, act.__name__)) == "FAILED"


def test_the_lock_of_a_servers_model_is_among_the_users_files(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    with database.lock("http://127.0.0.1:9", NAME), database.lock("http://127.0.0.1:9", "another"):
        assert len(list((tmp_path / "state/sam-distillery").glob("*.lock"))) == 2


def test_an_engine_that_was_overwritten_is_not_registered(built, monkeypatch):
    monkeypatch.chdir(built.root)
    (built.root / "artifacts/distill/small/model.txt").write_text("another")
    with pytest.raises(InputError, match=r"artifacts/distill/small is damaged: .*dvc checkout"):
        promote.register()
    assert not built.client.search_registered_models()
