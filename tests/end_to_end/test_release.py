"""The whole pipeline with the real stages, as `dvc repro` and as a flow run it."""

import json
import shutil

import pytest
import yaml

from pipeline.compare.leaderboard import BASELINES

ENGINES = [f"efficientvit_sam_nano-{precision}" for precision in ("fp32", "int8")]
TARGETS = sorted(
    ["prepare", "teacher", "embed", "evaluate_teacher", "compare"]
    + [f"{stage}@efficientvit_sam_nano" for stage in ("distill", "align", "export")]
    + [f"{stage}@{engine}" for stage in ("quantize", "build_engine", "evaluate") for engine in ENGINES]
)


def every_stage(world):
    """The latest run of each target, all of them finished and with metrics."""
    runs = {run.data.tags["target"]: run for run in reversed(world.runs()) if "target" in run.data.tags}
    assert sorted(runs) == TARGETS
    assert {run.info.status for run in runs.values()} == {"FINISHED"}
    assert all(run.data.metrics for run in runs.values())
    return runs


def test_one_command_runs_every_stage_to_the_leaderboard_and_the_report(released):
    lock = yaml.safe_load((released.root / "dvc.lock").read_text())
    assert sorted(lock["stages"]) == TARGETS
    board = json.loads((released.root / "artifacts/compare/leaderboard.json").read_text())
    assert [row["model"] for row in board if row["role"] == "baseline"] == list(BASELINES.values())
    board = [row for row in board if row["role"] != "baseline"]
    models = [(row["role"], row["model"], row["precision"]) for row in board]
    students = [("student", "efficientvit_sam_nano", precision) for precision in ("fp32", "int8")]
    assert sorted(models) == sorted([("teacher", "bundled", "fp32"), *students])
    for row in board:
        assert 0 <= row["box_miou"] <= 1
        assert row["size_mib"] > 1
        if row["role"] == "student":
            assert (released.root / row["artifact"] / "card.json").is_file()
    report = (released.root / "artifacts/compare/report.html").read_text()
    assert "efficientvit_sam_nano" in report
    assert '<section id="sensitivity">' in report
    assert "<img" in report


def test_a_second_repro_does_nothing(released):
    lock = (released.root / "dvc.lock").read_bytes()
    done = released.dvc("repro")
    assert done.returncode == 0
    assert done.stdout.count("didn't change, skipping") == len(TARGETS)
    assert (released.root / "dvc.lock").read_bytes() == lock


def test_every_stage_has_its_run_in_mlflow_with_metrics_and_what_it_was_made_from(released):
    runs = every_stage(released)
    engine = runs[f"build_engine@{ENGINES[0]}"].data.tags
    assert engine["parent/quantize"] == runs[f"quantize@{ENGINES[0]}"].data.tags["digest"]
    distill = runs["distill@efficientvit_sam_nano"]
    assert distill.data.params["optimizer.steps"] == "6"
    assert distill.data.metrics["embedding_mse"] > 0
    assert "box_miou" in runs["evaluate_teacher"].data.metrics


@pytest.fixture(scope="module")
def restored(released, world_at, tmp_path_factory):
    """A copy that has lost all results but DVC's cache and the store of embeddings, after `dvc repro`."""
    world = world_at(tmp_path_factory.mktemp("restored") / "clone")
    lost = shutil.ignore_patterns("artifacts", "mlflow.db*", "mlruns", "dvc.lock", "tmp", "__pycache__")
    shutil.copytree(released.root, world.root, ignore=lost)
    done = world.dvc("repro")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert done.stdout.count("is cached - skipping run") == len(TARGETS) - 1
    return world


def test_what_was_lost_comes_back_from_dvcs_cache(released, restored):
    assert (restored.root / "dvc.lock").read_bytes() == (released.root / "dvc.lock").read_bytes()
    for target in TARGETS:
        artifact = target.replace("@", "/").replace("-", "/")
        assert restored.digest(artifact) == released.digest(artifact)


def test_what_dvc_restored_is_in_a_new_mlflow_with_the_same_metrics(released, restored):
    before, after = every_stage(released), every_stage(restored)
    for target, run in after.items():
        written = json.loads(
            (restored.root / "artifacts" / target.replace("@", "/").replace("-", "/") / "metrics.json").read_text()
        )
        assert run.data.metrics.items() >= written.items()
        assert run.data.tags["digest"] == before[target].data.tags["digest"]
        assert (run.data.tags.get("origin") == "cache") == (target != "compare")


@pytest.mark.slow
def test_the_flow_gives_the_same_lock_byte_for_byte_and_prints_the_leaderboard(released, new_clone):
    world = new_clone("flow")
    done = world.command("flows.release", PREFECT_HOME=str(world.root / ".prefect"), PREFECT_LOGGING_LEVEL="INFO")
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert (world.root / "dvc.lock").read_bytes() == (released.root / "dvc.lock").read_bytes()
    every_stage(world)
    table, places = done.stdout.rstrip().split("\n\n")[-2:]
    assert table.split()[0] == "model"
    assert table.count("efficientvit_sam_nano") == 2
    assert "artifacts/compare/report.html" in places
    version = world.client.get_model_version_by_alias("sam-distillery", "challenger")
    assert version.tags["student"] == "efficientvit_sam_nano"
