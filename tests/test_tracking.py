import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from pipeline.stage import Stage
from pipeline.tracking import EXPERIMENT, PARENT_RUN, Curves, Store, parent_run

A = Stage(run="m:a", says="")
B = Stage(run="m:b", says="", needs=(A,), over=("student",))
C = Stage(run="m:c", says="", needs=(A, B), over=("student", "precision"))
D = Stage(run="m:d", says="", needs=(C,))
PARAMS = {"students": ["s", "t"], "precisions": ["fp32", "int8"]}


@pytest.fixture
def store(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(PARENT_RUN, raising=False)
    return Store.open()


def test_upstream_is_everything_a_repetition_builds_on_once():
    keys = {"student": "t", "precision": "int8"}
    assert [stage.target(found) for stage, found in C.upstream(PARAMS, keys)] == ["a", "b@t"]
    everything = [stage.target(found) for stage, found in D.upstream(PARAMS, {})]
    assert everything == ["a", "b@s", "c@s-fp32", "c@s-int8", "b@t", "c@t-fp32", "c@t-int8"]


def test_curves_arrive_in_full_and_the_final_value_is_the_latest(store):
    run = store.start("x", {})
    curves = Curves(store, run)
    for step in range(1200):
        curves({"loss": float(step)}, step)
    curves({"loss": -1.0})
    curves.flush()
    history = store.client.get_metric_history(run, "loss")
    assert len(history) == 1201
    assert store.client.get_run(run).data.metrics["loss"] == -1.0


def test_runs_of_dead_processes_are_closed_and_those_of_living_ones_are_not(store):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    gone, here = store.start("gone", {"pid": str(dead.pid)}), store.start("here", {"pid": str(os.getpid())})
    elsewhere = store.start("elsewhere", {"pid": str(dead.pid), "host": "another"})
    again = Store.open()
    status = {run: again.client.get_run(run).info.status for run in (gone, here, elsewhere)}
    assert status == {gone: "KILLED", here: "RUNNING", elsewhere: "RUNNING"}


def test_a_run_becomes_the_child_of_the_run_in_our_variable(store, monkeypatch):
    monkeypatch.setenv(PARENT_RUN, "0" * 32)
    assert store.client.get_run(store.start("x", {})).data.tags["mlflow.parentRunId"] == "0" * 32


@pytest.mark.parametrize(("error", "status"), [(RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_the_parent_run_ends_as_the_flow_did(store, error, status):
    with pytest.raises(error), parent_run("release") as parent:
        raise error
    assert store.client.get_run(parent.run).info.status == status


def test_several_processes_can_make_a_fresh_store_at_once(tmp_path):
    code = "from pipeline.tracking import Store; print(Store.open().experiment)"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(3)
    ]
    ends = [(process.communicate(timeout=120), process.returncode) for process in processes]
    assert [code for _, code in ends] == [0, 0, 0], ends
    assert len({out for (out, _), _ in ends}) == 1


def test_a_store_whose_making_was_stopped_is_made_anew(tmp_path):
    code = "from pipeline.tracking import Store; print(Store.open().experiment)"
    start = partial(
        subprocess.Popen,
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    first = start()
    drafts = lambda: [path for path in tmp_path.glob("mlflow.db.*.part") if path.stat().st_size]  # noqa: E731
    until = time.monotonic() + 100
    while not drafts():  # some tables are there
        assert time.monotonic() < until
        assert first.poll() is None
        time.sleep(0.001)
    first.kill()
    first.communicate()
    assert not (tmp_path / "mlflow.db").exists()
    second = start()
    output, _ = second.communicate(timeout=100)
    assert second.returncode == 0, output
    assert not drafts()


def test_a_store_that_cannot_be_reached_says_what_to_do(tmp_path, monkeypatch):
    from pipeline.errors import InputError

    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:////proc/none/mlflow.db")
    with pytest.raises(
        InputError, match=r"MLflow at sqlite:////proc/none/mlflow\.db cannot be used.*unset MLFLOW_TRACKING_URI"
    ):
        Store.open()


def test_a_store_can_be_made_again_where_it_was_deleted_and_lie_elsewhere(store, tmp_path, monkeypatch):
    (tmp_path / "mlflow.db").unlink()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/again/mlflow.db")
    (first,) = {Store.open().experiment for _ in range(2)}
    assert (tmp_path / "again/mlflow.db").exists()
    assert first
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///:memory:")
    Store.open()
    assert not list(tmp_path.glob(":memory:*"))


def test_the_experiment_has_the_name_of_the_project(store):
    assert store.client.get_experiment(store.experiment).name == EXPERIMENT
