import os
import shutil
import signal
import subprocess
import sys
import time
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import psutil
import pytest
from prefect.testing.utilities import prefect_test_harness

from flows import dvc
from flows.promote import promote as promote_flow
from flows.release import chosen, release
from pipeline import promote
from pipeline.errors import GateError, InputError

WORLD = Path(__file__).parent / "world"

pytestmark = pytest.mark.slow


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
    assert {"dvc.lock", "params.yaml", "dvc.yaml"} <= {f.path for f in world.client.list_artifacts(parent.info.run_id)}

    # Everything skipped: a new parent names the same runs. The model is registered once.
    first = {tag: run for tag, run in parent.data.tags.items() if tag.startswith("run/")}
    assert promote.register().startswith("small fp32 is already registered: tiny version 1")
    release()
    again = max((run for run in world.runs() if run.info.run_name == "release"), key=lambda run: run.info.start_time)
    assert again.info.run_id != parent.info.run_id
    assert {tag: run for tag, run in again.data.tags.items() if tag.startswith("run/")} == first
    assert len(world.client.search_model_versions("name = 'tiny'")) == 1


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
        dvc.repro("distill@small", {}, lines.append)
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
        "dvc.repro('distill@small', {}, print)\n"
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
def test_the_gate_moves_the_champion_and_rollback_moves_it_back(built, monkeypatch):
    monkeypatch.chdir(built.root)
    promote.register()
    with pytest.raises(InputError, match="has no champion"):
        promote.rollback()
    assert promote_flow() == "tiny version 1 is champion (" + (
        "box_miou_retained 0.9444 keeps to 0.9; click_miou_retained 0.9375 keeps to 0.9; latency_ms 10 keeps to 20)"
    )
    assert "already" in promote.promote()

    board = built.root / promote.LEADERBOARD
    engine = built.root / "artifacts/distill/small"
    second = shutil.copytree(engine, built.root / "artifacts/distill/second")
    card = (second / "card.json").read_text()
    digest = "0" * 64
    (second / "card.json").write_text(card.replace(built.digest("distill/small"), digest))
    text = board.read_text().replace(built.digest("distill/small"), digest)
    board.write_text(text.replace("artifacts/distill/small", "artifacts/distill/second").replace("10.0", "25.0"))
    promote.register()
    with pytest.raises(GateError, match=r"version 2 .*latency_ms 25 misses 20 by 5; version 1 stays champion"):
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


def test_a_student_that_params_do_not_list_is_refused():
    with pytest.raises(InputError, match=r"unknown student 'x'.*lists a, b"):
        chosen({"students": ["a", "b"]}, ["x"])
    assert chosen({"students": ["a", "b"]}, ["b"])["students"] == ["b"]
