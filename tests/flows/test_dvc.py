import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
import yaml

ROOT = Path(__file__).parents[2]
TARGETS = ["compare", "distill@small", "evaluate@small-fp32", "evaluate_teacher", "prepare"]


def test_a_second_repro_does_nothing(built):
    lock = (built.root / "dvc.lock").read_bytes()
    done = built.dvc("repro")
    assert done.returncode == 0
    assert done.stdout.count("didn't change, skipping") == len(TARGETS)
    assert (built.root / "dvc.lock").read_bytes() == lock


def test_every_stage_is_in_mlflow_with_parameters_metrics_and_lineage(built):
    runs = {run.data.tags["target"]: run for run in built.runs()}
    assert sorted(runs) == TARGETS
    distill = runs["distill@small"]
    assert distill.info.status == "FINISHED"
    assert distill.data.params == {"student": "small", "steps": "3", "lr": "0.001", "end": "well"}
    assert distill.data.metrics == {"loss": 1 / 3}
    assert distill.data.tags["parent/prepare"] == runs["prepare"].data.tags["digest"]
    assert [i.dataset.name for i in distill.inputs.dataset_inputs] == ["prepare"]
    assert len(distill.data.tags["git.commit"]) == 40
    assert len(built.client.get_metric_history(distill.info.run_id, "loss")) == 4


def test_the_comparison_is_in_mlflow_with_report_table_and_plots(built):
    [run] = built.runs("compare")
    files = {f.path for where in ("", "plots") for f in built.client.list_artifacts(run.info.run_id, where)}
    assert {"report.html", "leaderboard.json", "table.json", "plots/dot.png"} <= files
    table = json.loads(Path(built.client.download_artifacts(run.info.run_id, "table.json", built.root)).read_text())
    shown = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [(row["model"], row["box_miou"]) for row in shown] == [("bundled", 0.9), ("small", 0.85)]


def test_what_dvc_restores_from_its_cache_is_in_a_new_mlflow_too(built):
    before = {run.data.tags["target"]: run for run in built.runs()}
    (built.root / "dvc.lock").unlink()
    shutil.rmtree(built.root / "artifacts")
    built.database = "new.db"
    done = built.dvc("repro", MLFLOW_TRACKING_URI="sqlite:///new.db")
    assert done.returncode == 0
    assert done.stdout.count("is cached - skipping run") == len(TARGETS) - 1
    after = {run.data.tags["target"]: run for run in built.runs()}
    assert sorted(after) == TARGETS
    for target, run in after.items():
        assert run.data.metrics == before[target].data.metrics
        assert run.data.params == before[target].data.params
        assert run.data.tags["digest"] == before[target].data.tags["digest"]
        assert (run.data.tags.get("origin") == "cache") == (target != "compare")


def test_bad_input_under_dvc_tells_how_the_earlier_result_comes_back(built):
    earlier = (built.root / "artifacts/distill/small/card.json").read_text()
    built.edit("end: well", "end: input")
    done = built.dvc("repro", "--single-item", "distill@small")
    assert done.returncode != 0
    line = next(line for line in done.stderr.splitlines() if line.startswith("error: "))
    assert "data.txt is too short: make it longer. The earlier result is in DVC's cache: `dvc checkout" in line
    assert not (built.root / "artifacts/distill/small").exists()
    assert built.dvc(*line.split("`")[1].split()[1:]).returncode == 0
    assert (built.root / "artifacts/distill/small/card.json").read_text() == earlier


def add_student(world, name, end):
    """List one more student, which ends in a certain way."""
    world.edit("]\nprecisions:", f", {name}]\nprecisions:")
    world.edit("evaluate:\n", f"  {name}: {{steps: 3, lr: 0.001, end: {end}}}\nevaluate:\n")


def test_plain_repro_takes_a_refusal_measures_the_others_names_it_last_and_does_nothing_again(built):
    add_student(built, "other", "refused")
    done = built.dvc("repro")
    assert done.returncode == 0, done.stdout + done.stderr
    said = "refused: other fp32 (distill.min_agreement: 0.5, limit 0.9)"
    compare = done.stdout.partition("Running stage 'compare'")[2].partition("Updating lock file")[0]
    assert compare.rstrip().splitlines()[-1] == said
    places = [built.root / "artifacts" / place for place in ("distill/other", "evaluate/other/fp32")]
    cards = [json.loads((place / "card.json").read_text()) for place in places]
    assert [card["kind"] for card in cards] == ["refusal", "refusal"]
    assert cards[0]["refusal"] == cards[1]["refusal"]
    board = json.loads((built.root / "artifacts/compare/leaderboard.json").read_text())
    assert [row["model"] for row in board] == ["bundled", "small"]
    lock = (built.root / "dvc.lock").read_bytes()
    assert "up to date" in built.dvc("status").stdout
    assert built.dvc("repro").stdout.count("didn't change, skipping") == len(TARGETS) + 2
    assert (built.root / "dvc.lock").read_bytes() == lock
    assert [run.data.tags["refusal.rule"] for run in built.runs("evaluate@other-fp32")] == ["distill.min_agreement"]


def test_repro_that_keeps_going_makes_what_does_not_need_the_stage_that_failed(built):
    add_student(built, "broken", "fault")
    add_student(built, "other", "well")
    done = built.dvc("repro", "--keep-going")
    assert done.returncode != 0
    assert (built.root / "artifacts/evaluate/other/fp32/card.json").is_file()
    assert not (built.root / "artifacts/evaluate/broken").exists()
    # What reads all of them is left to a person, who may want the leaderboard of what there is.
    assert built.dvc("repro", "--single-item", "compare").returncode == 0
    board = json.loads((built.root / "artifacts/compare/leaderboard.json").read_text())
    assert [row["model"] for row in board] == ["bundled", "other", "small"]


def test_repro_ends_with_the_leaderboard(built):
    done = built.dvc("repro", "--force", "--single-item", "compare")
    assert done.returncode == 0, done.stderr
    shown = done.stdout.partition("Running stage 'compare'")[2].partition("Updating lock file")[0]
    shown = shown or done.stdout.partition("Running stage 'compare'")[2]
    assert "box mIoU" in shown
    assert [line.split()[0] for line in shown.splitlines() if " 0.8" in line or " 0.9" in line] == ["bundled", "small"]
    assert "report: artifacts/compare/report.html" in shown


def test_dvc_shows_the_metrics_of_the_comparison(built):
    assert "artifacts/compare/metrics.json" in built.dvc("metrics", "show").stdout


def test_dvc_draws_the_plots_of_the_comparison(built):
    done = built.dvc("plots", "show", "--json")
    assert done.returncode == 0, done.stderr
    shown = json.loads(done.stdout)["data"]
    [accuracy] = shown["Accuracy"]
    points = accuracy["content"]["data"]["values"]
    assert [(point["latency_ms"], point["box_miou"]) for point in points] == [(40.0, 0.9), (10.0, 0.85)]
    assert "artifacts/compare/plots/dot.png" in shown


@pytest.mark.parametrize("shell", ["/bin/sh", "/bin/bash"])
def test_a_killed_dvc_leaves_no_stage_behind(built, shell):
    built.edit("end: well", "end: never")
    dvc = subprocess.Popen(
        [sys.executable, "-m", "dvc", "repro", "--single-item", "distill@small"],
        cwd=built.root,
        env=built.environment | {"SHELL": shell},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    until = time.monotonic() + 60
    while not (built.root / "started").exists():
        assert time.monotonic() < until
        time.sleep(0.05)
    children = psutil.Process(dvc.pid).children(recursive=True)
    assert children
    os.kill(dvc.pid, signal.SIGKILL)
    dvc.wait()
    _, alive = psutil.wait_procs(children, timeout=20)
    assert not alive
    assert not (built.root / "artifacts/.drafts/distill@small").exists()


@pytest.fixture
def real(tmp_path, world_at):
    """This repository, in which DVC takes empty results for those of distillation."""
    root = tmp_path / "real"
    for name in ("pipeline", "deps"):
        shutil.copytree(ROOT / name, root / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("dvc.yaml", "params.yaml", ".dvcignore"):
        shutil.copy(ROOT / name, root)
    of_each = [f"{stage}/{student}{precision}" for stage, precision in REAL for student in STUDENTS]
    for name in ("prepare", "teacher", "embed", "evaluate_teacher", *of_each):
        (root / "artifacts" / name).mkdir(parents=True)
    world = world_at(root)
    assert world.dvc("init", "--no-scm", "--quiet").returncode == 0
    (root / "boxes").mkdir()
    (root / "boxes/vitdet.json").write_text("[]")
    world.edit("  data: pipeline/evaluate/detections.py", "  data: boxes")
    made = [name.replace("/", "@", 1).replace("/", "-") for name in of_each]
    done = world.dvc("commit", "--force", *made)
    assert done.returncode == 0, done.stderr
    return world


STUDENTS = ("efficientvit_sam_nano", "sam_lightening_nano", "tinysam_nano")
REAL = (
    ("distill", ""),
    ("align", ""),
    ("export", ""),
    ("quantize", "/int8"),
    ("build_engine", "/int8"),
    ("evaluate", "/int8"),
)


def stale(world, stage="distill", precision=""):
    done = world.dvc("status", "--json", *(f"{stage}@{student}{precision}" for student in STUDENTS))
    return {target.removeprefix(f"{stage}@").removesuffix(precision) for target in json.loads(done.stdout)}


def test_an_edit_of_one_students_file_makes_that_student_stale_and_no_other(real):
    assert stale(real) == set()
    for name, expected in {
        "models/tiny_vit.py": {"tinysam_nano"},
        "models/efficientvit.py": {"efficientvit_sam_nano"},
        "models/neck.py": {*STUDENTS},
        "models/cost.py": set(),
        "core/log.py": set(),
    }.items():
        path = real.root / "pipeline" / name
        before = path.read_bytes()
        path.write_bytes(before + b"# edited\n")
        assert stale(real) == expected, name
        path.write_bytes(before)
    assert stale(real) == set()


def test_another_version_of_a_library_makes_stale_what_it_decides(real):
    path = real.root / "deps/versions.yaml"
    path.write_text(re.sub(r"^openvino: .*", "openvino: 2099.1.0", path.read_text(), flags=re.MULTILINE))
    assert stale(real, "build_engine", "-int8") == {*STUDENTS}
    assert stale(real) | stale(real, "export") | stale(real, "quantize", "-int8") == set()


def test_other_results_of_a_detector_make_evaluations_stale(real):
    assert stale(real, "evaluate", "-int8") == set()
    (real.root / "boxes/vitdet.json").write_text("[{}]")
    assert stale(real, "evaluate", "-int8") == {*STUDENTS}
    assert stale(real, "build_engine", "-int8") == set()


@pytest.mark.parametrize("where", ["--temp", "--queue"])
def test_an_experiment_in_a_copy_of_the_checkout_is_in_the_checkouts_mlflow(built, where):
    git = ["git", "-c", "user.name=A Person", "-c", "user.email=person@example.org"]
    subprocess.run([*git, "add", "--all"], cwd=built.root, check=True)
    subprocess.run([*git, "commit", "--quiet", "--message", "built"], cwd=built.root, check=True)
    before = len(built.runs("distill@small"))
    done = built.dvc("exp", "run", where, "--set-param", "distill.small.steps=4", "distill@small")
    assert done.returncode == 0, done.stdout + done.stderr
    if where == "--queue":
        done = built.dvc("exp", "run", "--run-all")
        assert done.returncode == 0, done.stdout + done.stderr
    run, *_ = runs = built.runs("distill@small")
    assert len(runs) == before + 1
    assert (run.info.status, run.data.params["steps"]) == ("FINISHED", "4")
    assert not list(built.root.glob(".dvc/tmp/exps/**/mlflow.db"))
    assert yaml.safe_load((built.root / "params.yaml").read_text())["distill"]["small"]["steps"] == 3
