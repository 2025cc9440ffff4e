import json
import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import pytest
from mlflow.data import get_source

from pipeline.core import provenance
from pipeline.core.stage import Stage
from pipeline.stages import STAGES
from pipeline.tracking import EXPERIMENT, PARENT_RUN, Curves, Store, parent_run, tracked
from pipeline.tracking.inputs import CONTEXTS, DATASET, log_dataset

A = Stage(run="m:a", summary="")
B = Stage(run="m:b", summary="", deps=(A,), matrix=("student",))
C = Stage(run="m:c", summary="", deps=(A, B), matrix=("student", "precision"))
D = Stage(run="m:d", summary="", deps=(C,))
PARAMS = {"students": ["s", "t"], "precisions": ["fp32", "int8"]}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An empty database; making one takes seconds."""
    root = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        Store.open()
    return root / "mlflow.db"


@pytest.fixture
def store(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv(PARENT_RUN, raising=False)
    shutil.copy(made, "mlflow.db")
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
    again = Store.open()
    status = {run: again.client.get_run(run).info.status for run in (gone, here)}
    assert status == {gone: "KILLED", here: "RUNNING"}


@pytest.mark.parametrize("part", [0, 1, 2])
def test_runs_of_another_boot_pid_namespace_or_host_are_left_alone(store, part):
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    identity = provenance.host()["host.id"].split("/")
    assert all(identity)
    identity[part] = "another"
    run = store.start("elsewhere", {"pid": str(dead.pid), "host.id": "/".join(identity)})
    assert Store.open().client.get_run(run).info.status == "RUNNING"


def test_runs_in_a_file_from_before_the_machine_booted_are_closed(store, monkeypatch):
    monkeypatch.setattr(provenance, "host", lambda: {"host": "h", "host.id": "old/1/h", "host.machine": "m"})
    runs = [store.start("x", {"pid": str(os.getpid()), **more}) for more in ({}, {"host.machine": "n"}, {"host": "g"})]
    monkeypatch.setattr(provenance, "host", lambda: {"host": "h", "host.id": "new/1/h", "host.machine": "m"})
    status = lambda: [Store.open().client.get_run(run).info.status for run in runs]  # noqa: E731
    assert status() == ["RUNNING"] * 3  # this machine has not booted since they began
    monkeypatch.setattr("pipeline.core.provenance.psutil.boot_time", lambda: time.time() + 1)
    assert status() == ["KILLED", "RUNNING", "RUNNING"]


def test_a_run_becomes_the_child_of_the_run_in_our_variable(store, monkeypatch):
    monkeypatch.setenv(PARENT_RUN, "0" * 32)
    assert store.client.get_run(store.start("x", {})).data.tags["mlflow.parentRunId"] == "0" * 32


@pytest.mark.parametrize(("error", "status"), [(RuntimeError, "FAILED"), (KeyboardInterrupt, "KILLED")])
def test_the_parent_run_ends_as_the_flow_did(store, error, status):
    with pytest.raises(error), parent_run("release") as parent:
        raise error
    assert store.client.get_run(parent.run).info.status == status


@pytest.mark.parametrize("fails", [False, True])
def test_the_parent_run_has_the_settings_from_its_start_and_the_lock_however_it_ends(store, fails):
    Path("params.yaml").write_text("a: 1")
    files = lambda run: {file.path for file in store.client.list_artifacts(run)}  # noqa: E731
    with suppress(RuntimeError), parent_run("release") as parent:
        assert files(parent.run) == {"params.yaml"}
        Path("dvc.lock").write_text("b")
        if fails:
            raise RuntimeError
    assert files(parent.run) == {"params.yaml", "dvc.lock"}
    assert store.client.get_run(parent.run).info.status == ("FAILED" if fails else "FINISHED")


@pytest.mark.parametrize("value", ["true", "false"])
def test_system_metrics_are_logged_where_mlflows_variable_asks_for_them(store, monkeypatch, value):
    monkeypatch.setenv("MLFLOW_ENABLE_SYSTEM_METRICS_LOGGING", value)
    monkeypatch.setenv("MLFLOW_SYSTEM_METRICS_SAMPLING_INTERVAL", "0.2")
    metrics = lambda run: store.client.get_run(run).data.metrics  # noqa: E731
    with tracked("x", {}) as curves:
        until = time.monotonic() + (60 if value == "true" else 1)
        while not metrics(curves.run) and time.monotonic() < until:
            time.sleep(0.1)
    assert ("system/cpu_utilization_percentage" in metrics(curves.run)) == (value == "true")
    assert store.client.get_run(curves.run).info.status == "FINISHED"
    assert "SystemMetricsMonitor" not in {thread.name for thread in threading.enumerate()}


def test_what_reads_the_data_set_has_it_as_its_input_and_nothing_else(built):
    for target, reads in (("prepare", False), ("distill@small", True), ("evaluate@small-fp32", False)):
        (run,) = built.runs(target)
        logged = [
            (each.dataset.name, each.dataset.digest, [(tag.key, tag.value) for tag in each.tags])
            for each in run.inputs.dataset_inputs
        ]
        digest = built.digest("prepare")
        expected = [("prepare", digest[:36], [("mlflow.data.context", "training")])]
        assert logged == (expected if reads else [])
    assert json.loads(built.runs("distill@small")[0].inputs.dataset_inputs[0].dataset.profile) == {"images": 8.0}
    assert built.runs("distill@small")[0].data.tags["parent/prepare"] == digest


def test_a_data_set_is_named_after_its_source(store):
    prepare = Stage(run="m:prepare", summary="")
    distill = Stage(run="m:distill", summary="", deps=(prepare,))
    run = store.start("x", {})
    params = {"prepare": {"data": "/data/coco_free"}}
    log_dataset(store.client, run, distill, params, {}, {"prepare": "0" * 64})
    (found,) = store.client.get_run(run).inputs.dataset_inputs
    assert (found.dataset.name, found.dataset.digest) == ("coco_free", "0" * 36)
    assert get_source(found.dataset).uri == "/data/coco_free"


def test_every_stage_that_reads_the_data_set_says_what_for():
    assert {stage.name for stage in STAGES if DATASET in {dep.name for dep in stage.deps}} == {*CONTEXTS}


def test_several_processes_can_make_a_fresh_store_at_once(tmp_path):
    code = "from pipeline.tracking import Store; print(Store.open().experiment)"
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=tmp_path,
            env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
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
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])},
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
    from pipeline.core.errors import InputError

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
