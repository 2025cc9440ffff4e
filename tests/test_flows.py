import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import module_from_spec, spec_from_file_location
from itertools import pairwise
from pathlib import Path

import psutil
import pytest
from prefect.artifacts import Artifact
from prefect.testing.utilities import prefect_test_harness

from flows import dvc
from flows.promote import main as promote_main
from flows.release import chosen, release
from pipeline import promote
from pipeline.artifact import digest as artifact_digest
from pipeline.errors import GateError, InputError

WORLD = Path(__file__).parent / "world"


@pytest.fixture(scope="session")
def _prefect():
    with prefect_test_harness(server_startup_timeout=120):
        yield


@pytest.fixture
def here(monkeypatch):
    """Work in a world with its stages in place of ours."""

    def enter(world):
        spec = spec_from_file_location("stages_of_the_world", WORLD / "pipeline/stages.py")
        stages = module_from_spec(spec)
        spec.loader.exec_module(stages)
        monkeypatch.setattr("flows.release.STAGES", stages.STAGES)
        monkeypatch.chdir(world.root)

    return enter


@pytest.mark.usefixtures("_prefect")
def test_the_flow_gives_the_lock_of_plain_repro_and_a_parent_run_with_all_stages(world, built, here):
    here(world)
    rows = release()
    assert (world.root / "dvc.lock").read_bytes() == (built.root / "dvc.lock").read_bytes()
    assert [row["model"] for row in rows] == ["bundled", "small"]
    runs = {run.info.run_name: run for run in world.runs()}
    parent = runs.pop("release")
    runs.pop("register")
    assert parent.info.status == "FINISHED"
    assert {run.data.tags["mlflow.parentRunId"] for run in runs.values()} == {parent.info.run_id}
    assert parent.data.tags["run/evaluate/small/fp32"] == runs["evaluate@small-fp32"].info.run_id
    assert parent.data.metrics["evaluate/small/fp32/box_miou"] == 0.85
    shown = json.loads(Artifact.get("leaderboard").data)
    assert [(row["model"], row["box mIoU"]) for row in shown] == [("bundled", "0.900"), ("small", "0.850")]
    assert {"dvc.lock", "params.yaml", "dvc.yaml"} <= {f.path for f in world.client.list_artifacts(parent.info.run_id)}

    # Everything skipped: a new parent names the same runs. The model is registered once.
    first = {tag: run for tag, run in parent.data.tags.items() if tag.startswith("run/")}
    assert promote.register().startswith("small fp32 is already registered: tiny version 1")
    release()
    again = max((run for run in world.runs() if run.info.run_name == "release"), key=lambda run: run.info.start_time)
    assert again.info.run_id != parent.info.run_id
    assert {tag: run for tag, run in again.data.tags.items() if tag.startswith("run/")} == first
    assert len(world.client.search_model_versions("name = 'tiny'")) == 1


def add_students(world, end, *names):
    """List more students after the one there is, all of them ending in a certain way."""
    world.edit("end: well", f"end: {end}")
    world.edit("students: [small]", f"students: [small, {', '.join(names)}]")
    lines = "".join(f"  {name}: {{steps: 3, lr: 0.001, end: well}}\n" for name in names)
    world.edit("evaluate:\n", f"{lines}evaluate:\n")


@pytest.mark.slow
@pytest.mark.usefixtures("_prefect")
def test_stages_at_once_overlap_but_for_those_that_measure(world, world_at, tmp_path, here):
    add_students(world, "slowly", "other")
    world.edit("other: {steps: 3, lr: 0.001, end: well}", "other: {steps: 3, lr: 0.001, end: slowly}")
    plain = world_at(shutil.copytree(world.root, tmp_path / "plain"))
    assert plain.dvc("repro").returncode == 0
    here(world)
    release(at_once=2)
    assert (world.root / "dvc.lock").read_bytes() == (plain.root / "dvc.lock").read_bytes()
    spans = {run.info.run_name: (run.info.start_time, run.info.end_time) for run in world.runs()}
    small, other = spans["distill@small"], spans["distill@other"]
    assert other[0] < small[1]
    assert small[0] < other[1]
    measuring = sorted(span for name, span in spans.items() if name.startswith("evaluate"))
    assert len(measuring) == 3
    assert max(small[1], other[1]) < measuring[0][0]
    assert all(before[1] < after[0] for before, after in pairwise(measuring))


def test_entries_that_came_in_any_order_are_put_in_the_order_of_plain_repro(built, monkeypatch):
    monkeypatch.chdir(built.root)
    lock = built.root / "dvc.lock"
    expected = lock.read_text()
    entries = dvc._entries()
    order = list(entries)
    assert len(order) == 5
    head = expected.partition("stages:\n")[0] + "stages:\n"
    lock.unlink()
    with dvc.lock_in_order(order):
        lock.write_text(head + "".join(reversed(entries.values())))
    assert lock.read_text() == expected
    # What was there before keeps its place, as DVC keeps it.
    lock.write_text(head + entries[order[3]])
    with dvc.lock_in_order(order):
        lock.write_text(head + "".join(entries[order[i]] for i in (3, 1, 0, 4, 2)))
    assert lock.read_text() == head + "".join(entries[order[i]] for i in (3, 0, 1, 2, 4))


@pytest.mark.usefixtures("_prefect")
def test_a_stage_that_fails_takes_those_beside_it_with_it(world, here):
    add_students(world, "never", "other")
    world.edit("other: {steps: 3, lr: 0.001, end: well}", "other: {steps: 3, lr: 0.001, end: input beside small}")
    here(world)
    began = time.monotonic()
    with pytest.raises(dvc.BadInputError, match=r"distill@other: .*data\.txt is too short"):
        release(at_once=2)
    assert time.monotonic() - began < 100  # the other would sleep for longer
    assert [run.info.status for run in world.runs("distill@small")] == ["KILLED"]
    left = [p.pid for p in psutil.process_iter(["cwd"]) if p.info["cwd"] == str(world.root)]
    assert left in ([], [os.getpid()])


@pytest.mark.slow
def test_ctrl_c_ends_all_stages_that_run_at_once(world):
    add_students(world, "never", "other")
    world.edit("other: {steps: 3, lr: 0.001, end: well}", "other: {steps: 3, lr: 0.001, end: never}")
    flow = subprocess.Popen(
        [sys.executable, "-m", "flows.release", "--at-once", "2"],
        cwd=world.root,
        env=world.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    until = time.monotonic() + 120
    while not ((world.root / "started small").exists() and (world.root / "started other").exists()):
        assert time.monotonic() < until
        assert flow.poll() is None
        time.sleep(0.05)
    children = psutil.Process(flow.pid).children(recursive=True)
    os.kill(flow.pid, signal.SIGINT)
    _, err = flow.communicate(timeout=60)
    assert flow.returncode == 130
    assert err.rstrip().endswith("error: the flow was stopped; `python -m flows.release` goes on where it was.")
    assert not psutil.wait_procs(children, timeout=5)[1]
    assert {run.info.status for run in world.runs() if run.info.run_name != "prepare"} == {"KILLED"}


@pytest.mark.usefixtures("_prefect")
def test_bad_input_fails_the_flow_at_once_with_its_line_and_the_earlier_result_stays(built, here):
    here(built)
    earlier = (built.root / "artifacts/distill/small/card.json").read_text()
    built.edit("end: well", "end: input")
    began = time.monotonic()
    with pytest.raises(dvc.BadInputError, match=r"distill@small: .*data\.txt is too short: make it longer"):
        release()
    assert time.monotonic() - began < 60
    assert [run.info.status for run in built.runs("distill@small")] == ["FAILED", "FINISHED"]  # tried once
    assert (built.root / "artifacts/distill/small/card.json").read_text() == earlier


def test_a_fault_is_told_with_the_end_of_its_output(built, here):
    here(built)
    built.edit("end: well", "end: fault")
    lines = []
    with pytest.raises(dvc.StageFailedError, match="the weights went to infinity") as failed:
        dvc.Stages().repro("distill@small", {}, lines.append)
    assert not isinstance(failed.value, dvc.BadInputError)
    assert any("Traceback" in line for line in lines)
    assert (built.root / "artifacts/distill/small/card.json").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_stage_of_a_flow_leaves_the_earlier_result_and_no_process(built, number):
    built.edit("end: well", "end: never")
    earlier = (built.root / "artifacts/distill/small/card.json").read_text()
    code = (
        "from pipeline.process import raise_on_signals; raise_on_signals()\n"
        "from flows import dvc\n"
        "dvc.Stages().repro('distill@small', {}, print)\n"
    )
    flow = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=built.root,
        env=built.environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    until = time.monotonic() + 60
    while not (built.root / "started").exists():
        assert time.monotonic() < until
        time.sleep(0.05)
    children = psutil.Process(flow.pid).children(recursive=True)
    assert len(children) >= 2  # dvc and the stage
    os.kill(flow.pid, number)
    flow.communicate(timeout=60)
    assert flow.returncode
    assert not psutil.wait_procs(children, timeout=5)[1]
    assert (built.root / "artifacts/distill/small/card.json").read_text() == earlier
    assert [run.info.status for run in built.runs("distill@small")] == ["KILLED", "FINISHED"]


@pytest.mark.usefixtures("_prefect")
def test_the_gate_moves_the_champion_and_rollback_moves_it_back(built, monkeypatch, capfd):
    monkeypatch.chdir(built.root)
    promote.register()
    with pytest.raises(InputError, match="has no champion"):
        promote.rollback()
    assert promote_main() == 0
    assert capfd.readouterr().out == "tiny version 1 is champion (" + (
        "box_miou_retained 0.9444 keeps to 0.9; click_miou_retained 0.9375 keeps to 0.9; latency_ms 10 keeps to 20)\n"
    )
    assert "already" in promote.promote()

    board = built.root / promote.LEADERBOARD
    engine = built.root / "artifacts/distill/small"
    second = shutil.copytree(engine, built.root / "artifacts/distill/second")
    (second / "model.txt").write_text("another")
    card, digest = (second / "card.json").read_text(), artifact_digest(second)
    (second / "card.json").write_text(card.replace(built.digest("distill/small"), digest))
    text = board.read_text().replace(built.digest("distill/small"), digest)
    board.write_text(text.replace("artifacts/distill/small", "artifacts/distill/second").replace("10.0", "25.0"))
    promote.register()
    capfd.readouterr()
    assert promote_main() == 1
    told = capfd.readouterr().err
    assert re.search(r"^error: .* version 2 .*latency_ms 25 misses 20 by 5; version 1 stays champion\.$", told, re.M)
    assert told.count("\n") == 1, told  # nothing of Prefect's
    with pytest.raises(GateError, match="misses 20 by 5"):
        promote.promote()
    champion = lambda: built.client.get_model_version_by_alias("tiny", "champion").version  # noqa: E731
    assert champion() == "1" or champion() == 1

    built.edit("max_latency_ms: 20.0", "max_latency_ms: 30.0")
    assert "version 2 is champion" in promote.promote()
    assert int(built.client.get_model_version_by_alias("tiny", "previous").version) == 1
    assert promote.rollback() == "tiny version 1 is champion again, in place of version 2"
    assert int(champion()) == 1
    with pytest.raises(InputError, match="first champion"):
        promote.rollback()
    board.unlink()
    assert promote_main() == 2
    assert "error: artifacts/compare/leaderboard.json does not exist: run `dvc repro`.\n" in capfd.readouterr().err


def test_a_student_that_params_do_not_list_is_refused():
    with pytest.raises(InputError, match=r"unknown student 'x'.*lists a, b"):
        chosen({"students": ["a", "b"]}, ["x"])
    assert chosen({"students": ["a", "b"]}, ["b"])["students"] == ["b"]
