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

import numpy as np
import psutil
import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from pipeline import promote
from pipeline.core.artifact import file_sha256
from pipeline.core.errors import GateError, InputError
from pipeline.promote import champion, changes, registry
from pipeline.promote.champion import INSTANCES
from pipeline.promote.changes import PENDING, RUNTIME, Change
from pipeline.promote.registry import CHALLENGER, CHAMPION, PREVIOUS, version_of
from pipeline.tracking import Store, database
from tests.promote.evaluations import model, truth

NAME = "tiny"
PARAMS = f"""
promote:
  registered_model: {NAME}
  min_box_miou_retained: 0.9
  min_click_miou_retained: 0.9
  max_latency_ms: 20.0
  prefer: latency_ms
  champion: {{resamples: 200}}
"""
GOOD = {"box_miou": 0.9, "click_miou": 0.8, "latency_ms": 10.0, "teacher_box_miou": 0.9, "teacher_click_miou": 0.8}
GOOD |= {"trivial_box_miou": 0.6, "trivial_click_miou": 0.4}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A database with four versions, each more accurate than the one before; the first is champion, the second
    challenger, the last runs on a GPU."""
    root = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        store = Store.open()
    store.client.create_registered_model(NAME)
    rng = np.random.default_rng(0)
    world = truth(rng)
    for number in (1, 2, 3, 4):
        run = store.start("register", {})
        for metric, value in GOOD.items():
            store.client.log_metric(run, metric, value)
        path = root / f"{number}.parquet"
        model(rng, world, -0.03 * number).write(path)
        digest = file_sha256(path)
        store.client.log_artifact(run, str(path.rename(root / f"{digest}.parquet")), INSTANCES)
        store.client.set_terminated(run)
        runtime = "tensorrt" if number == 4 else "openvino"
        tags = {"digest": str(number), INSTANCES: digest, RUNTIME: runtime}
        store.client.create_model_version(NAME, str(root), run, tags=tags)
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
    """Versions by alias, and the predecessor of each version. Aliases of the target cpu must be as the plain ones."""
    registered = store.client.get_registered_model(NAME)
    aliases = {alias: str(v) for alias, v in registered.aliases.items()}
    own = {alias: version for alias, version in aliases.items() if "-" not in alias and alias != CHALLENGER}
    assert {alias: version for alias, version in aliases.items() if alias.endswith("-cpu")} in (
        {},  # before the first command
        {f"{alias}-cpu": version for alias, version in own.items()},
    )
    assert PENDING not in registered.tags
    before = {str(v.version): v.tags.get(PREVIOUS) for v in store.client.search_model_versions(f"name = '{NAME}'")}
    plain = {alias: version for alias, version in aliases.items() if "-" not in alias}
    return plain, {version: previous for version, previous in before.items() if previous}


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
    assert {rule["name"] for rule in verdict["rules"]} >= {"box_miou_vs_champion", "gain", "latency_ms"}
    assert tags["gate/gain"] == "passed"
    table = Path(store.client.download_artifacts(run.info.run_id, "gate.txt")).read_text()
    assert table.split()[:6] == ["rule", "value", "limit", "margin", "interval", "passed"]
    promote.rollback()
    assert state(store) == ({CHAMPION: "1", CHALLENGER: "2"}, {})
    ((status, tags, _),) = runs(store, "rollback")
    assert (status, tags["stage"], tags["registered_model"]) == ("FINISHED", "rollback", NAME)
    assert (tags["version"], tags["replaced"], tags["digest"]) == ("1", "2", "1")
    back, there = promote.history()
    assert (back["action"], back["version"], back["outcome"]) == ("rollback", "1", "rolled back")
    assert (there["action"], there["version"], there["replaced"], there["outcome"]) == ("promote", "2", "1", "promoted")


def test_a_refused_challenger_changes_nothing_and_its_run_tells_why(store):
    before = state(store)
    Path("params.yaml").write_text(PARAMS.replace("20.0", "5.0"))
    with pytest.raises(GateError, match="latency_ms 10 misses 5 by 5; version 1 stays champion"):
        promote.promote()
    assert state(store) == before
    ((status, tags, _),) = runs(store, "promote")
    assert (status, tags["passed"], tags["outcome"]) == ("FINISHED", "false", "refused")


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
    assert (first, second) == ("tiny version 2 is already champion", "tiny version 2 is champion, replacing version 1")
    assert state(store) == ({CHAMPION: "2", CHALLENGER: "2", PREVIOUS: "1"}, {"2": "1"})
    assert len(runs(store, "promote")) == 1


@pytest.mark.parametrize("act", [promote.promote, promote.rollback])
def test_a_change_that_another_machine_made_meanwhile_stays(store, monkeypatch, act):
    if act is promote.rollback:
        promote.promote()
    real = champion.running

    def meanwhile(*arguments):
        store.client.set_registered_model_alias(NAME, CHAMPION, "3")
        return real(*arguments)

    monkeypatch.setattr(champion, "running", meanwhile)
    with pytest.raises(InputError, match=r"another process moved alias champion meanwhile, from version \d to 3"):
        act()
    assert str(store.client.get_registered_model(NAME).aliases[CHAMPION]) == "3"
    assert next(status for status, _, _ in runs(store, act.__name__)) == "FAILED"


def test_a_dry_run_judges_and_changes_and_records_nothing(store):
    before = state(store)
    assert promote.promote(dry_run=True) == "tiny version 2 passes the gate; nothing was changed"
    Path("params.yaml").write_text(PARAMS.replace("20.0", "5.0"))
    with pytest.raises(GateError, match="version 2 does not pass the gate: latency_ms .*; nothing was changed"):
        promote.promote(dry_run=True)
    assert state(store)[0][CHAMPION] == before[0][CHAMPION]
    assert not runs(store, "promote")


def test_a_forced_promotion_says_why_and_what_did_not_hold(store):
    Path("params.yaml").write_text(PARAMS.replace("20.0", "5.0"))
    with pytest.raises(InputError, match="--force needs a reason"):
        promote.promote(force=" ")
    line = promote.promote(force="the server is faster")
    assert "version 2 is champion, replacing version 1 (forced: the server is faster; did not hold: latency_ms" in line
    assert promote.history()[0]["reason"] == "the server is faster"
    ((_, tags, _),) = runs(store, "promote")
    assert (tags["forced"], tags["passed"], tags["outcome"]) == ("the server is faster", "false", "promoted")


def test_an_equal_or_worse_challenger_is_refused_with_rule_margin_and_interval(store):
    promote.promote()
    store.client.set_registered_model_alias(NAME, CHALLENGER, "1")
    with pytest.raises(GateError, match=r"box_miou_vs_champion -0\.0\d+ \[-.*\] misses -0.001 by 0\.0.*gain: neither"):
        promote.promote()
    assert state(store)[0][CHAMPION] == "2"


def test_each_target_has_a_champion_and_the_plain_alias_follows_the_first_one(store):
    promote.promote()
    changes.set_challenger(store.client, NAME, "4")
    assert promote.promote() == "tiny version 4 is champion"
    aliases = {alias: str(v) for alias, v in store.client.get_registered_model(NAME).aliases.items()}
    assert aliases == {
        CHAMPION: "2", "champion-cpu": "2", "champion-gpu": "4", PREVIOUS: "1", "previous-cpu": "1",
        CHALLENGER: "4", "challenger-gpu": "4",
    }  # fmt: skip
    with pytest.raises(InputError, match="version 4 is the first champion"):
        promote.rollback(target="gpu")
    assert promote.rollback() == "tiny version 1 is champion again, replacing version 2"


class KilledError(Exception):
    """Stands for a SIGKILL: nothing after it runs."""


@pytest.mark.parametrize("act", [promote.promote, promote.rollback])
def test_a_command_killed_at_any_write_leaves_a_champion_and_repeated_ends_as_undisturbed(store, monkeypatch, act):
    if act is promote.rollback:
        promote.promote()
    saved = Path("mlflow.db").read_bytes()
    act()
    expected, number = state(store), 0
    writes = [name for name in dir(MlflowClient) if name.startswith(("set_", "delete_"))]
    while True:
        Path("mlflow.db").write_bytes(saved)
        number, done = number + 1, 0

        def killed(real, stop):
            def call(*arguments, **named):
                nonlocal done
                done += 1
                if done > stop:
                    raise KilledError
                return real(*arguments, **named)

            return call

        with monkeypatch.context() as patch:
            for name in writes:
                patch.setattr(MlflowClient, name, killed(getattr(MlflowClient, name), number - 1))
            try:
                act()
            except KilledError:
                pass
            else:
                break
        aliases = store.client.get_registered_model(NAME).aliases
        assert {str(aliases[CHAMPION]), str(aliases.get("champion-cpu", aliases[CHAMPION]))} <= {"1", "2"}
        if str(aliases[CHAMPION]) == expected[0][CHAMPION] and act is promote.rollback:
            promote.history()  # settles; another rollback would go back further
        else:
            act()
        assert state(store) == expected
    assert number > 6


def test_a_change_of_an_alias_by_hand_is_taken_up(store):
    promote.promote()
    store.client.set_registered_model_alias(NAME, CHAMPION, "3")
    store.client.set_registered_model_alias(NAME, CHALLENGER, "2")
    with pytest.raises(GateError, match="version 3 stays champion"):
        promote.promote()
    assert str(store.client.get_registered_model(NAME).aliases["champion-cpu"]) == "3"


def test_an_unknown_pending_change_is_dropped(store):
    store.client.set_registered_model_tag(NAME, PENDING, "{}")
    assert changes.settle(store.client, NAME) is None
    assert PENDING not in store.client.get_registered_model(NAME).tags
    change = Change("promote", "cpu", "1", "2", "1", "no such run")
    store.client.set_registered_model_tag(NAME, PENDING, json.dumps(vars(change)))
    assert changes.settle(store.client, NAME) is None
    assert state(store)[0][CHAMPION] == "1"


def test_damaged_results_per_instance_are_not_compared(store):
    version = store.client.get_model_version(NAME, "2")
    store.client.set_model_version_tag(NAME, "2", INSTANCES, "0" * 64)
    with pytest.raises(InputError, match="results per instance cannot be downloaded"):
        promote.promote()
    store.client.set_model_version_tag(NAME, "2", INSTANCES, version.tags[INSTANCES])
    promote.promote()


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
