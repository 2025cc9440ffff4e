"""Stages handed to workers: a real server, real workers in clones of their own, and a DVC remote between them."""

import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from contextlib import contextmanager, suppress
from typing import get_args

import psutil
import pytest
from prefect.exceptions import ParameterTypeError

from flows import clone, remote
from flows.release import Verb, check_engine, release
from pipeline.core.errors import InputError
from pipeline.stages import STAGES

IDENTITY = ["-c", "user.name=A Person", "-c", "user.email=person@example.org"]


def git(root, *arguments):
    done = subprocess.run(["git", *IDENTITY, *arguments], cwd=root, check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def fleet(world, world_at, tmp_path):
    """A repository that others cloned: one who asks for releases, and two machines with GPUs."""
    world.dvc("remote", "add", "--default", "shared", str(tmp_path / "remote"))
    git(world.root, "add", "--all")
    git(world.root, "commit", "--quiet", "--message", "a remote")
    for name in ("caller", "first", "second"):
        git(tmp_path, "clone", "--quiet", str(world.root), name)
    return {name: world_at(tmp_path / name) for name in ("caller", "first", "second")}


@pytest.fixture
def alone(fleet, monkeypatch):
    """The first clone, as the current folder."""
    monkeypatch.chdir(fleet["first"].root)
    return fleet["first"]


def test_a_clone_is_brought_to_a_commit_with_the_callers_parameters_and_cleaned_up(fleet, alone):
    caller = fleet["caller"].root
    (caller / "note.txt").write_text("new")
    git(caller, "add", "--all")
    git(caller, "commit", "--quiet", "--message", "later")
    wanted = git(caller, "rev-parse", "HEAD")
    with (
        pytest.raises(InputError, match="no remote of the worker's clone .* has commit"),
        clone.check_out(wanted, "", ""),
    ):
        pass
    git(caller, "push", "--quiet", "origin", "HEAD:refs/heads/later")
    before = (alone.root / "params.yaml").read_text()
    with clone.check_out(wanted, "students: []\n", "schema: '2.0'\n"):
        assert (alone.root / "note.txt").read_text() == "new"
        assert (alone.root / "params.yaml").read_text() == "students: []\n"
        assert (alone.root / "dvc.lock").read_text() == "schema: '2.0'\n"
        with pytest.raises(InputError, match="in use by another release or worker"), clone.check_out(wanted, "", ""):
            pass
    assert (alone.root / "params.yaml").read_text() == before
    assert not (alone.root / "dvc.lock").exists()


def test_what_a_killed_run_left_in_the_parameters_goes_but_a_persons_changes_stay(fleet, alone):
    head = git(alone.root, "rev-parse", "HEAD")
    params = alone.root / "params.yaml"
    params.write_text("left behind")
    (alone.root / ".dvc/tmp").mkdir(exist_ok=True)
    (alone.root / ".dvc/tmp/handed").touch()
    with clone.check_out(head, "students: []\n", ""):
        pass
    assert "left behind" not in params.read_text()
    assert git(alone.root, "rev-parse", "--abbrev-ref", "HEAD") != "HEAD"  # on its branch, not beside it
    before = params.read_text()
    params.write_text("mine")
    with pytest.raises(InputError, match=r"changes in params\.yaml"), clone.check_out(head, "students: []\n", ""):
        pass
    assert params.read_text() == "mine"
    params.write_text(before)
    code = alone.root / "pipeline/core/log.py"
    code.write_text("mine")
    with (
        pytest.raises(InputError, match=r"changes in pipeline/core/log\.py"),
        clone.check_out(head, "students: []\n", ""),
    ):
        pass
    assert code.read_text() == "mine"
    with pytest.raises(InputError, match=r"pipeline/core/log\.py differ from the last commit"):
        clone.commit()


def test_a_worker_could_not_have_what_is_new_or_not_pushed(alone):
    new = alone.root / "pipeline/new.py"
    new.write_text("")
    with pytest.raises(InputError, match=r"pipeline/new\.py differ"):
        clone.commit()
    git(alone.root, "add", "--all")
    git(alone.root, "commit", "--quiet", "--message", "new")
    with pytest.raises(InputError, match="in no remote branch, so workers cannot fetch it: push it"):
        clone.commit()
    git(alone.root, "push", "--quiet", "origin", "HEAD:refs/heads/new")
    assert clone.commit() == git(alone.root, "rev-parse", "HEAD")


def test_a_stage_whose_result_was_to_come_back_is_not_run_instead(built):
    done = built.verb("prepare", PIPELINE_RESTORE_ONLY="1")
    assert done.returncode == 2
    assert "the result of prepare did not come back from the worker" in done.stderr


def test_what_cannot_be_handed_over_is_refused_before_anything_runs(alone, monkeypatch):
    with pytest.raises(ParameterTypeError, match="on_gpu"):
        release.validate_parameters({"students": None, "at_once": 1, "on_gpu": ("prepare",)})
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    with pytest.raises(InputError, match="needs a Prefect server"):
        remote.check_ready()


def test_the_verbs_that_can_be_handed_over_are_the_stages_for_a_gpu():
    assert set(get_args(Verb)) == {stage.name for stage in STAGES if stage.gpu}


def test_tensorrt_that_is_not_here_is_refused_before_anything_runs(monkeypatch):
    monkeypatch.setattr("flows.release.find_spec", lambda name: None)
    params = {"build_engine": {"engine": "tensorrt"}}
    with pytest.raises(
        InputError, match="tensorrt, which is not installed on this machine: run the stages that need it"
    ):
        check_engine(params, [])
    with pytest.raises(InputError, match="--on-gpu build_engine,evaluate"):
        check_engine(params, ["build_engine"])
    check_engine(params, ["build_engine", "evaluate"])
    check_engine({"build_engine": {"engine": "openvino"}}, [])


@contextmanager
def started(world, *arguments, **environment):
    """A process of its own group, killed with all it started at the end."""
    process = subprocess.Popen(
        [sys.executable, "-m", *arguments], cwd=world.root, env=world.environment | environment, start_new_session=True,
        stdout=(world.root.parent / f"{world.root.name}.log").open("a"), stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        yield process
    finally:
        kill(process)


def kill(process):
    """As when the power goes: the process and all that it started, in whatever group, without a word."""
    try:
        family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return
    for each in family:
        with suppress(psutil.NoSuchProcess):
            each.kill()
    process.wait()


def until(happened, seconds):
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.5)


def answers(url):
    try:
        with urllib.request.urlopen(url, timeout=2) as response:
            return response.status == 200
    except OSError:
        return False


@pytest.fixture
def served(fleet, tmp_path):
    """The clones, with a Prefect server that knows their deployments."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    caller, api = fleet["caller"], f"http://127.0.0.1:{port}/api"
    home = {"PREFECT_HOME": str(tmp_path / "prefect")}
    with started(caller, "prefect", "server", "start", "--host", "127.0.0.1", "--port", str(port), **home):
        until(lambda: answers(f"{api}/health"), 120)
        environment = home | {"PREFECT_API_URL": api, "PREFECT_LOGGING_LEVEL": "INFO"}
        done = caller.command("flows.worker", "--deploy", **environment)
        assert done.returncode == 0, done.stdout + done.stderr
        yield fleet | {"environment": environment}


def run_release(served):
    """Start the deployed release from the caller's clone; a worker there takes it."""
    arguments = ["prefect", "deployment", "run", "release/cpu", "--param", 'on_gpu=["distill"]', "--watch"]
    return started(served["caller"], *arguments, **served["environment"])


SILENT = """
import time

from prefect.automations import Automation
from prefect.client.orchestration import get_client
from prefect.events import ResourceSpecification, emit_event
from prefect.states import Running

from flows import worker

def run_of(client, deployment):
    run = client.create_flow_run_from_deployment(deployment)
    client.set_flow_run_state(run.id, Running(), force=True)
    related = [{"prefect.resource.id": f"prefect.deployment.{deployment}", "prefect.resource.role": "deployment"}]
    resource = {"prefect.resource.id": f"prefect.flow-run.{run.id}"}
    emit_event("prefect.flow-run.heartbeat", resource=resource, related=related)
    return run.id

automation = Automation.read(name=worker._AUTOMATION)
automation.trigger.match_related = ResourceSpecification({})  # as earlier versions made it
automation.update()
worker.SILENCE_S = 10  # the least that Prefect takes
worker._create_automation()
with get_client(sync_client=True) as client:
    assert [each.id for each in client.read_automations_by_name(worker._AUTOMATION)] == [automation.id]
    ours = client.read_deployment_by_name("check/gpu")
    other = client.create_deployment(ours.flow_id, "of other people", work_pool_name="gpu")
    runs = {"other": run_of(client, other), "ours": run_of(client, ours.id)}
    end = time.monotonic() + 120
    while client.read_flow_run(runs["ours"]).state.is_running():
        assert time.monotonic() < end
        time.sleep(1)
    time.sleep(15)  # the other has been silent for longer
    print(*(f"{name}: {client.read_flow_run(run).state.name}" for name, run in runs.items()))
"""


@pytest.mark.slow
def test_a_run_of_ours_that_falls_silent_has_crashed_and_one_of_other_people_has_not(served):
    caller = served["caller"]
    done = subprocess.run(
        [sys.executable, "-c", SILENT],
        cwd=caller.root, env=caller.environment | served["environment"], capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "other: Running ours: Crashed"


@pytest.mark.slow
def test_a_release_on_one_machine_has_its_gpu_stage_run_on_another(served, built):
    caller, first, environment = served["caller"], served["first"], served["environment"]
    with started(caller, "flows.worker", "cpu", **environment), started(first, "flows.worker", "gpu", **environment):
        tried = first.command("flows.worker", "gpu", "--try", **environment)
        assert tried.returncode == 0, tried.stdout + tried.stderr
        assert f"clone: {first.root}" in tried.stdout
        with run_release(served) as release:
            assert release.wait(240) == 0, (caller.root.parent / "caller.log").read_text()[-4000:]
    assert (caller.root / "dvc.lock").read_bytes() == (built.root / "dvc.lock").read_bytes()
    assert caller.digest("distill/small") == built.digest("distill/small")
    # It ran there, not here: the worker's own MLflow has the run, ours has it as restored.
    assert [run.data.tags.get("origin") for run in first.runs("distill@small")] == [None]
    assert [run.data.tags.get("origin") for run in caller.runs("distill@small")] == ["cache"]
    assert git(first.root, "status", "--porcelain", "--untracked-files=no") == ""


@pytest.mark.slow
def test_when_a_worker_is_killed_with_a_stage_another_one_finishes_it(served, built):
    caller, environment = served["caller"], served["environment"]
    # What a person changed in the parameters goes along without a commit.
    caller.edit("end: well", "end: slowly")
    with started(caller, "flows.worker", "cpu", **environment), run_release(served) as release:
        with started(served["first"], "flows.worker", "gpu", **environment) as worker:
            drafts = served["first"].root / "artifacts/.drafts/distill@small"
            until(drafts.exists, 120)
            kill(worker)
        with started(served["second"], "flows.worker", "gpu", **environment):
            assert release.wait(400) == 0, (caller.root.parent / "caller.log").read_text()[-4000:]
    assert not (served["first"].root / "artifacts/distill/small").exists()
    assert len(served["second"].runs("distill@small")) == 1
    # The lock is as if all had run here.
    plain = served["first"]
    shutil.rmtree(plain.root / "artifacts")
    shutil.copy(caller.root / "params.yaml", plain.root / "params.yaml")
    git(plain.root, "checkout", "--quiet", git(caller.root, "rev-parse", "HEAD"))
    shutil.rmtree(plain.root / ".dvc/cache", ignore_errors=True)
    assert plain.dvc("repro").returncode == 0
    assert (caller.root / "dvc.lock").read_bytes() == (plain.root / "dvc.lock").read_bytes()
