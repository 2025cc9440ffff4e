import fcntl
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
from threading import Event, Thread

import psutil
import pytest
from prefect.artifacts import Artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterId
from prefect.client.schemas.objects import StateType
from prefect.events.filters import EventFilter, EventNameFilter
from prefect.exceptions import ParameterTypeError
from prefect.testing.utilities import prefect_test_harness
from prefect.utilities.callables import parameter_schema

from flows import dvc
from flows.outcome import ReleaseFailedError
from flows.promote import EVENT
from flows.promote import main as promote_main
from flows.release import WITH_REFUSALS, chosen, main, release
from pipeline import promote
from pipeline.core import dvc_files
from pipeline.core.artifact import digest as artifact_digest
from pipeline.core.errors import GateError, InputError
from pipeline.stages import STAGES

WORLD = Path(__file__).parents[1] / "world"


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


def add_students(world, end, **ends):
    """Let the student there is end in a certain way, and list more after it with theirs."""
    world.edit("end: well", f"end: {end}")
    world.edit("students: [small]", f"students: [small, {', '.join(ends)}]")
    lines = "".join(f"  {name}: {{steps: 3, lr: 0.001, end: {end}}}\n" for name, end in ends.items())
    world.edit("evaluate:\n", f"{lines}evaluate:\n")


def board(world):
    """Models of the leaderboard."""
    rows = json.loads((world.root / "artifacts/compare/leaderboard.json").read_text())
    return [row["model"] for row in rows]


@pytest.mark.slow
@pytest.mark.usefixtures("_prefect")
def test_stages_at_once_overlap_but_for_those_that_measure(world, world_at, tmp_path, here):
    add_students(world, "slowly", other="slowly")
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


@pytest.mark.slow
def test_ctrl_c_ends_all_stages_that_run_at_once(world):
    add_students(world, "never", other="never")
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
    assert err.rstrip().endswith("error: the flow was stopped; `python -m flows.release` resumes it.")
    assert not psutil.wait_procs(children, timeout=5)[1]
    assert {run.info.status for run in world.runs() if run.info.run_name != "prepare"} == {"KILLED"}


@pytest.mark.slow
def test_a_killed_flow_leaves_no_process_behind(world):
    world.edit("end: well", "end: never")
    flow = subprocess.Popen([sys.executable, "-m", "flows.release"], cwd=world.root, env=world.environment)
    try:
        until = time.monotonic() + 300
        while not (world.root / "started small").exists():
            assert time.monotonic() < until
            assert flow.poll() is None
            time.sleep(0.05)
        children = psutil.Process(flow.pid).children(recursive=True)
        assert any("uvicorn" in child.cmdline() for child in children)
    finally:
        flow.kill()
        flow.wait()
    assert not psutil.wait_procs(children, timeout=60)[1]


def flow(world, *arguments):
    """The command that people type: exit code, and the lines of its output without Prefect's."""
    done = world.command("flows.release", "--debug", *arguments, PREFECT_LOGGING_LEVEL="INFO")
    return done.returncode, done.stdout.splitlines(), done.stderr.splitlines()


def told(lines, name):
    """Of Prefect's log, the level of each line of one run that is not what the stage itself said."""
    mine = [line for line in lines if f"'{name}'" in line and " | " in line]
    return [line.split(" | ")[1].strip() for line in mine if "Finished" in line or " | INFO" not in line]


def test_a_release_with_a_refused_candidate_completes_with_exit_code_3_and_does_nothing_again(world):
    add_students(world, "refused", other="well")
    line = "refused: small (distill.min_agreement: 0.5, limit 0.9)"
    code, out, err = flow(world, "--at-once", "2")
    assert (code, out[-1], board(world)) == (3, line, ["bundled", "other"])
    assert any("refused by distill.min_agreement" in row and "\u0336" in row for row in out)
    assert any(f"Finished in state CompletedWithRefusals('{line}'" in row for row in err)
    assert not [row for row in err if "Traceback" in row or "| ERROR" in row or "NoneType" in row]
    [parent] = [run for run in world.runs() if run.info.run_name == "release"]
    assert parent.info.status == "FINISHED"
    version = world.client.get_model_version_by_alias("tiny", "challenger")
    assert version.tags["student"] == "other"
    # Nothing is left to do, for the flow as for DVC.
    assert "up to date" in world.dvc("status").stdout
    lock, runs = (world.root / "dvc.lock").read_bytes(), len(world.runs("distill@small"))
    code, out, err = flow(world)
    assert (code, out[-1]) == (3, line)
    assert not [row for row in err if "Running stage" in row]
    assert ((world.root / "dvc.lock").read_bytes(), len(world.runs("distill@small"))) == (lock, runs)


@pytest.mark.usefixtures("_prefect")
def test_where_all_are_refused_the_leaderboard_has_the_teacher_alone_and_nothing_is_registered(world, here):
    world.edit("end: well", "end: refused")
    here(world)
    state = release(return_state=True)
    assert (state.type, state.name) == (StateType.COMPLETED, WITH_REFUSALS)
    assert [row["model"] for row in state.result()] == board(world) == ["bundled"]
    assert not world.client.search_model_versions("name = 'tiny'")


def test_a_candidate_that_crashes_leaves_the_others_running_and_the_release_fails_with_their_leaderboard(world):
    add_students(world, "slowly", broken="fault beside small")
    code, out, err = flow(world, "--at-once", "2")
    assert (code, board(world)) == (1, ["bundled", "small"])
    assert any(row.startswith("small ") for row in out)
    assert [row for row in err if row.startswith("error: ")] == [
        "error: not run, because a dependency failed: evaluate@broken-fp32",
        "error: distill@broken: RuntimeError: the weights went to infinity",
    ]
    # It was tried twice, and Prefect says once that it failed; what waits for it says nothing.
    assert [run.info.status for run in world.runs("distill@broken")] == ["FAILED", "FAILED"]
    assert [run.info.status for run in world.runs("distill@small")] == ["FINISHED"]
    assert told(err, "distill@broken") == ["ERROR"]
    assert not any("evaluate@broken-fp32" in row and " | " in row and "Flow run" not in row for row in err)
    assert sum("Traceback" in row for row in err) == 2  # the stage's own
    assert {run.info.run_name: run.info.status for run in world.runs()}["release"] == "FAILED"


@pytest.mark.usefixtures("_prefect")
def test_an_earlier_result_of_what_failed_is_compared_and_named(built, here):
    here(built)
    add_students(built, "full", other="well")
    earlier = (built.root / "artifacts/distill/small/card.json").read_text()
    with pytest.raises(ReleaseFailedError) as failed:
        release()
    space, missing, kept = str(failed.value).splitlines()
    assert re.match(r"distill@small: .*model\.txt: no space left on the device", space)
    assert missing == "not run, because a dependency failed: evaluate@small-fp32"
    assert kept == "compared with the result of an earlier release: evaluate@small-fp32"
    assert not failed.value.bad_input
    assert [row["model"] for row in failed.value.rows] == ["bundled", "other", "small"]
    assert (built.root / "artifacts/distill/small/card.json").read_text() == earlier
    assert [run.info.status for run in built.runs("distill@small")] == ["FAILED", "FINISHED"]  # tried once


@pytest.mark.usefixtures("_prefect")
def test_bad_input_of_what_all_share_ends_the_release(world, here, capsys):
    world.edit("images: 8", "images: many")
    here(world)
    assert main([]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert re.match(r"error: prepare: params\.yaml, section 'prepare': .*images", errors[1])
    assert errors[0].startswith(
        "error: not run, because a dependency failed: distill@small, evaluate_teacher, evaluate@"
    )
    assert len(errors) == 2
    assert not world.runs("distill@small")


@pytest.mark.usefixtures("_prefect")
def test_a_task_runs_in_prefect_only_while_its_stage_does(world, here):
    add_students(world, "slowly", other="slowly")
    here(world)
    state = release(return_state=True)
    runs = {run.name: run for run in tasks_of(state.state_details.flow_run_id)}
    small, other = runs["distill@small"], runs["distill@other"]
    assert small.end_time <= other.start_time
    assert other.total_run_time.total_seconds() > 8
    spans = sorted((run.start_time, run.end_time) for run in runs.values())
    assert all(before[1] <= after[0] for before, after in pairwise(spans))


def tasks_of(flow_run):
    """Prefect writes down tasks a moment after they end."""
    until = time.monotonic() + 30
    with get_client(sync_client=True) as client:
        while True:
            found = client.read_task_runs(flow_run_filter=FlowRunFilter(id=FlowRunFilterId(any_=[flow_run])))
            if len(found) >= 8 and all(run.end_time for run in found):
                return found
            assert time.monotonic() < until, found
            time.sleep(0.5)


@pytest.mark.parametrize(
    "wrong", [{"at_once": 0}, {"students": "small"}, {"on_gpu": ["prepare"]}, {"on_gpu": "build_engine"}]
)
@pytest.mark.usefixtures("_prefect")
def test_parameters_of_the_wrong_kind_are_refused_before_anything_runs(world, here, wrong):
    here(world)
    with pytest.raises(ParameterTypeError, match=next(iter(wrong))):
        release(**wrong)
    assert not (world.root / "artifacts").exists()


def test_the_schema_of_the_deployment_has_the_limits_and_the_verbs_that_workers_know():
    properties = parameter_schema(release).properties
    assert properties["at_once"]["minimum"] == 1
    assert properties["on_gpu"]["items"]["enum"] == [stage.name for stage in STAGES if stage.gpu]
    assert properties["students"]["anyOf"][0] == {"items": {"type": "string"}, "type": "array"}


def test_dvc_lock_is_put_in_order_only_while_dvc_keeps_out(built, monkeypatch):
    monkeypatch.chdir(built.root)
    lock, guard = built.root / "dvc.lock", built.root / ".dvc/tmp/lock"
    guard.parent.mkdir(exist_ok=True)
    entries = dvc._entries()
    head = lock.read_text().partition("stages:\n")[0] + "stages:\n"
    lock.unlink()

    def rewrite():
        with dvc.lock_in_order(list(entries)):
            lock.write_text(head + "".join(reversed(entries.values())))
            guard.touch()
            taken.set()
            go.wait(60)

    taken, go = Event(), Event()
    thread = Thread(target=rewrite)
    thread.start()
    assert taken.wait(60)
    mixed = lock.read_text()
    with guard.open("r+") as held:  # as DVC's own zc.lockfile does
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        go.set()
        thread.join(1)
        assert thread.is_alive()
        assert lock.read_text() == mixed
    thread.join(60)
    assert list(dvc._entries()) == list(entries)
    # And while we have it, DVC waits.
    with dvc_files.repository_lock():
        assert "Unable to acquire lock" in built.dvc("status").stderr
    assert built.dvc("status").returncode == 0


def test_a_fault_is_told_in_one_line_beside_its_output(built, here):
    here(built)
    built.edit("end: well", "end: fault")
    lines = []
    with pytest.raises(dvc.StageFailedError) as failed:
        dvc.Stages().repro("distill@small", {}, lines.append)
    told = str(failed.value)
    assert told.startswith("distill@small: RuntimeError: the weights went to infinity. ")
    assert told.endswith(" Details: .logs/distill@small.log")
    assert not isinstance(failed.value, dvc.BadInputError)
    assert not any("Traceback" in line for line in lines)
    assert "Traceback" in (built.root / ".logs/distill@small.log").read_text()
    assert (built.root / "artifacts/distill/small/card.json").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stopped_stage_of_a_flow_leaves_the_earlier_result_and_no_process(built, number):
    built.edit("end: well", "end: never")
    earlier = (built.root / "artifacts/distill/small/card.json").read_text()
    code = (
        "from pipeline.core.process import raise_on_signals; raise_on_signals()\n"
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


def event_of(version):
    """The event after which a version is champion, once Prefect's server has stored it."""
    wanted = EventFilter(event=EventNameFilter(name=[EVENT])).model_dump(mode="json")
    until = time.monotonic() + 60
    while time.monotonic() < until:
        with get_client(sync_client=True) as client:
            events = client.request("POST", "/events/filter", json={"filter": wanted}).json()["events"]
        for event in events:
            if event["payload"]["new"] == version:
                return event
        time.sleep(0.5)
    raise AssertionError(f"no event of version {version}")


@pytest.mark.usefixtures("_prefect")
def test_the_gate_moves_the_champion_and_rollback_moves_it_back(built, monkeypatch, capfd):
    monkeypatch.chdir(built.root)
    card = built.root / "artifacts/distill/small/card.json"
    engine = card.read_text()
    card.write_text(engine.replace('"kind": "engine"', '"kind": "refusal"'))
    with pytest.raises(InputError, match="distill/small holds a refusal, which cannot be registered"):
        promote.register()
    card.write_text(engine)
    promote.register()
    with pytest.raises(InputError, match="has no champion"):
        promote.rollback()
    assert promote_main([]) == 0
    *table, line = capfd.readouterr().out.splitlines()
    assert line == "tiny version 1 is champion"
    assert [row.split()[0] for row in table] == [
        "rule", table[1].split()[0], "box_miou_retained", "click_miou_retained", "box_miou_above_trivial",
        "click_miou_above_trivial", "latency_ms",
    ]  # fmt: skip
    assert "already" in promote.promote()

    board = built.root / promote.LEADERBOARD
    engine = built.root / "artifacts/distill/small"
    second = shutil.copytree(engine, built.root / "artifacts/distill/second")
    (second / "model.txt").write_text("another")
    card, digest = (second / "card.json").read_text(), artifact_digest(second)
    (second / "card.json").write_text(card.replace(built.digest("distill/small"), digest))
    text = board.read_text().replace(built.digest("distill/small"), digest)
    board.write_text(text.replace("artifacts/distill/small", "artifacts/distill/second").replace("10.0", "25.0"))
    evaluation = built.root / "artifacts/evaluate/small/fp32"
    with pytest.raises(InputError, match="evaluate/small/fp32 is not the evaluation of the registered engine"):
        promote.register()
    card = evaluation / "card.json"
    card.write_text(card.read_text().replace(built.digest("distill/small"), digest))
    instances = json.loads((evaluation / "instances.json").read_text())
    better = [row | {"box_iou": row["box_iou"] + 0.02} for row in instances]
    (evaluation / "instances.json").write_text(json.dumps(better))
    promote.register()
    capfd.readouterr()
    assert promote_main([]) == 1
    told = capfd.readouterr().err
    assert re.search(r"^error: .* version 2 .*latency_ms 25 misses 20 by 5; version 1 stays champion\.$", told, re.M)
    assert told.count("\n") == 2, told  # the log file and the reason, nothing of Prefect's
    shown = json.loads(Artifact.get("gate").data)
    assert next(row for row in shown if row["rule"] == "latency_ms")["passed"] == "no"
    assert promote_main(["--dry-run"]) == 1
    with pytest.raises(GateError, match="misses 20 by 5"):
        promote.promote()
    champion = lambda: built.client.get_model_version_by_alias("tiny", "champion").version  # noqa: E731
    assert champion() == "1" or champion() == 1

    built.edit("max_latency_ms: 20.0", "max_latency_ms: 30.0")
    assert promote_main([]) == 0
    assert capfd.readouterr().out.endswith("tiny version 2 is champion, replacing version 1\n")
    event = event_of("2")
    assert event["resource"]["prefect.resource.id"] == "sam-distillery.model.tiny"
    assert (event["payload"]["old"], event["payload"]["action"]) == ("1", "promote")
    assert int(built.client.get_model_version_by_alias("tiny", "previous").version) == 1
    assert promote_main(["--rollback"]) == 0
    assert "tiny version 1 is champion again, replacing version 2\n" in capfd.readouterr().out
    assert int(champion()) == 1
    with pytest.raises(InputError, match="first champion"):
        promote.rollback()
    board.unlink()
    assert promote_main([]) == 2
    assert "error: artifacts/compare/leaderboard.json does not exist: run `dvc repro`.\n" in capfd.readouterr().err


def test_a_student_that_params_do_not_list_is_refused():
    with pytest.raises(InputError, match=r"unknown student 'x'.*lists a, b"):
        chosen({"students": ["a", "b"]}, ["x"])
    assert chosen({"students": ["a", "b"]}, ["b"])["students"] == ["b"]
