import contextlib
import io
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
import typer

from pipeline.bench import loading
from pipeline.bench.attention import PAIRS
from pipeline.bench.decoder import macs_per_prompt, ours, published
from pipeline.bench.interleaved import measure_interleaved
from pipeline.bench.settings import CUDA, PRECISIONS, RUNTIMES, Settings, SubjectName
from pipeline.bench.side_by_side import SUBJECTS
from pipeline.bench.table import Report, rows
from pipeline.cli import app, bench
from pipeline.core.artifact import Card, Contents
from pipeline.core.errors import InputError
from pipeline.evaluate import timing
from pipeline.evaluate.timing import wall
from pipeline.models import STUDENTS, build
from pipeline.models.sam import save_checkpoint

ROOT = Path(__file__).parents[2]
NANO = "efficientvit_sam_nano"
SETTINGS = Settings(
    students=(NANO,),
    runtimes=RUNTIMES,
    precisions=PRECISIONS,
    threads=1,
    runs=2,
    warmup=1,
    rounds=2,
    max_foreign_load=1.0,
    prompts=(1, 3),
    batches=(),
    images=2,
    photographs=None,
    tokens=(64,),
    steps=3,
    points=4,
    weights=None,
)


def _arguments(subject, *more):
    quick = ("--runs", "2", "--rounds", "2", "--warmup", "1", "--threads", "1", "--max-foreign-load", "1")
    command = typer.main.get_command(app).commands["bench"]
    return command.make_context("bench", [subject, *quick, *more]).params


def _bench(capsys, subject, *more):
    """What the command would print, on stdout and on stderr."""
    return bench(**_arguments(subject, *more)), capsys.readouterr().err


def _check_rows(measured):
    """All rows are compared with the first."""
    assert [row["baseline"] for row in measured] == [True] + [False] * (len(measured) - 1)
    assert (measured[0]["runtime"], measured[0]["precision"], measured[0]["speedup"]) == ("torch", "fp32", 1.0)
    for row in measured:
        assert row["median_ms"] > 0
        assert row["spread_ms"] >= 0
        assert row["speedup"] == pytest.approx(measured[0]["median_ms"] / row["median_ms"])
        assert row["samples"] >= 2
        assert row["parameters"] > 0
        assert row["gmacs"] > 0


@pytest.fixture(scope="module")
def encoders():
    """All runtimes and precisions of the encoder, in batches of one and of three: the report and what stderr got."""
    err = io.StringIO()
    with contextlib.redirect_stderr(err):
        out = bench(**_arguments("encoder", "--batches", "1,3", "--json"))
    return json.loads(out), err.getvalue()


def test_the_encoder_is_measured_in_batches_per_image(encoders):
    asked = (("bundled", "torch", "fp32"), (NANO, "torch", "fp32"), (NANO, "openvino", "fp32"))
    rows = [row for row in encoders[0]["rows"] if (row["name"], row["runtime"], row["precision"]) in asked]
    assert [(row["name"], row["runtime"], row["batch"]) for row in rows] == [
        (name, runtime, batch) for name, runtime, _ in asked for batch in (1, 3)
    ]
    assert len({row["gmacs"] for row in rows[2:]}) == 1


def test_the_encoder_is_compared_with_the_teacher_in_each_combination_that_exists_and_the_others_are_named(encoders):
    report, err = encoders
    _check_rows(report["rows"])
    assert [row["name"] for row in report["rows"]] == 2 * ["bundled"] + 14 * [NANO]
    assert [(row["runtime"], row["precision"]) for row in report["rows"][2::2]] == [
        ("torch", "fp32"),
        ("torch", "bf16"),
        ("onnxruntime", "fp32"),
        ("onnxruntime", "int8"),
        ("openvino", "fp32"),
        ("openvino", "bf16"),
        ("openvino", "int8"),
    ]
    size = {(row["runtime"], row["precision"]): row["size_mib"] for row in report["rows"][2:]}
    assert size["onnxruntime", "int8"] < 0.5 * size["onnxruntime", "fp32"]
    assert size["torch", "bf16"] == pytest.approx(size["torch", "fp32"] / 2, rel=0.01)
    on_cpu = ["torch fp16", "torch int8", "onnxruntime bf16", "onnxruntime fp16", "openvino fp16"]
    assert [note.partition(":")[0] for note in report["left_out"] if not note.startswith("cuda")] == on_cpu
    assert any(note.startswith("cuda") for note in report["left_out"])  # without a GPU all of it, with one its int8
    assert all(f"left out: {note}" in err for note in report["left_out"])


def test_every_family_is_measured_beside_the_others(capsys):
    nanos = [name for name in STUDENTS if name.endswith("_nano")]
    asked = ("--students", ",".join(nanos), "--runtimes", "torch", "--precisions", "fp32,bf16", "--json")
    measured = json.loads(_bench(capsys, "encoder", *asked)[0])["rows"]
    _check_rows(measured)
    expected = [("bundled", "fp32"), *((name, precision) for name in nanos for precision in ("fp32", "bf16"))]
    assert [(row["name"], row["precision"]) for row in measured] == expected


def test_full_size_students_are_compared_with_sam_vit_b_and_all_names_all():
    from pipeline.bench.side_by_side import _to_build

    settings = SETTINGS.model_copy(update={"students": ("tinysam_nano", "tinysam")})
    fp32 = [("openvino", "fp32")]
    assert _to_build(SUBJECTS["encoder"], settings, fp32) == [
        ("vit_b", [("torch", "fp32")]),
        ("tinysam_nano", fp32),
        ("tinysam", fp32),
    ]


def test_attention_is_compared_with_dense_attention_of_as_many_tokens_beside_the_formula(capsys):
    asked = ("--tokens", "96,2048", "--runtimes", "torch", "--precisions", "fp32,bf16", "--json")
    measured = json.loads(_bench(capsys, "attention", *asked)[0])["rows"]
    kinds = ["dense", *(f"dilated {segment}/{interval}" for segment, interval in PAIRS)]
    assert [(row["precision"], row["name"]) for row in measured] == [
        (precision, f"{kind} x{tokens}") for precision in ("fp32", "bf16") for tokens in (96, 2048) for kind in kinds
    ]
    for start in range(0, len(measured), len(kinds)):
        dense, *dilated = measured[start : start + len(kinds)]
        assert (dense["baseline"], dense["speedup"], dense["formula"]) == (True, 1.0, 1.0)
        for row in dilated:
            assert not row["baseline"]
            assert row["speedup"] == pytest.approx(dense["median_ms"] / row["median_ms"])
            assert row["gmacs"] == pytest.approx(dense["gmacs"] / row["formula"])
    formula = {row["name"]: row["formula"] for row in measured}
    assert formula["dilated 1024/2 x2048"] == 8
    assert formula["dilated 1024/2 x96"] == 4


@pytest.mark.gpu
@pytest.mark.parametrize("runtime", CUDA)
def test_a_gpu_has_rows_for_one_image_and_for_a_batch_with_memory_and_throughput(capsys, runtime):
    asked = ("--students", "sam_lightening_nano", "--runtimes", runtime, "--precisions", "bf16,fp16", "--json")
    baseline, *measured = json.loads(_bench(capsys, "encoder", *asked)[0])["rows"]
    assert [(row["precision"], row["batch"]) for row in measured] == [
        (precision, batch) for precision in ("bf16", "fp16") for batch in (1, 16)
    ]
    for row in measured:
        assert row["speedup"] == pytest.approx(baseline["median_ms"] / row["median_ms"])
        assert row["images_per_s"] == pytest.approx(1e3 / row["median_ms"])
        assert row["peak_mib"] > row["size_mib"]
        assert 0 < row["bf16_peak_share"] < 1


@pytest.fixture
def exported_before(exported, monkeypatch):
    """Engines are built from files that were exported before; what is measured does not depend on the weights."""
    for part in ("encoder", "decoder"):
        source = exported(NANO)["onnx"] / f"{part}.onnx"
        copy = lambda sam, path, source=source, **_: shutil.copy(source, path)  # noqa: E731
        monkeypatch.setattr(f"pipeline.bench.engines.export_{part}", copy)


@pytest.mark.usefixtures("exported_before")
def test_the_decoder_is_measured_in_segment_anythings_order_and_in_ours(capsys):
    asked = ("--runtimes", "torch,openvino", "--precisions", "fp32,bf16", "--prompts", "1,3", "--json")
    out, _ = _bench(capsys, "decoder", *asked)
    measured = json.loads(out)["rows"]
    _check_rows(measured)
    assert [(row["name"].removeprefix(f"{NANO} "), row["runtime"], row["precision"]) for row in measured] == [
        ("segment_anything x1", "torch", "fp32"),
        ("segment_anything x3", "torch", "fp32"),
        ("segment_anything, pages kept x1", "torch", "fp32"),
        ("segment_anything, pages kept x3", "torch", "fp32"),
        ("decode x1", "torch", "fp32"),
        ("decode x3", "torch", "fp32"),
        ("decode x1", "openvino", "fp32"),
        ("decode x3", "openvino", "fp32"),
        ("decode x1", "openvino", "bf16"),
        ("decode x3", "openvino", "bf16"),
    ]
    assert [row["batch"] for row in measured] == [1, 3] * 5


def test_evaluation_is_compared_with_the_published_one_call_by_call(capsys):
    asked = ("--runtimes", "torch", "--precisions", "fp32", "--images", "1", "--json")
    measured = json.loads(_bench(capsys, "evaluate", *asked)[0])["rows"]
    _check_rows(measured)
    assert [row["name"].removeprefix(f"{NANO} ") for row in measured] == ["reference", "evaluate"]
    assert measured[0]["largest_difference"] == 0
    assert measured[1]["gmacs"] < 0.5 * measured[0]["gmacs"]
    assert len({row["batch"] for row in measured}) == 1


def test_our_order_of_products_needs_fewer_of_them():
    sam = build(NANO)
    assert macs_per_prompt(sam, ours, 1) < 0.7 * macs_per_prompt(sam, published, 1)
    assert macs_per_prompt(sam, ours, 3) < macs_per_prompt(sam, ours, 1)


def test_training_takes_whole_steps_of_the_stages_own_loop_beside_a_bare_one(capsys):
    asked = ("--runtimes", "torch", "--precisions", "fp32", "--steps", "45", "--json")
    measured = json.loads(_bench(capsys, "training", *asked)[0])["rows"]
    bare, loop = measured
    assert [(row["name"], row["precision"], row["baseline"]) for row in measured] == [
        (f"{NANO} bare", "fp32", True),
        (NANO, "fp32", False),
    ]
    assert loop["speedup"] == pytest.approx(bare["median_ms"] / loop["median_ms"])
    assert loop["images_per_s"] == pytest.approx(2000 / loop["median_ms"])
    assert 0 <= loop["waiting_share"] <= 1
    assert abs(loop["memory_last_mib"] / loop["memory_first_mib"] - 1) < 0.2


@pytest.mark.parametrize("there", [True, False])
def test_training_is_measured_in_bf16_where_the_processor_has_instructions_for_it(capsys, monkeypatch, there):
    monkeypatch.setattr("pipeline.bench.training.has_bf16", lambda device: there)
    asked = ("--runtimes", "torch", "--precisions", "bf16", "--steps", "2", "--json")
    if there:
        rows = json.loads(_bench(capsys, "training", *asked)[0])["rows"]
        assert [(row["name"], row["precision"]) for row in rows] == [(f"{NANO} bare", "bf16"), (NANO, "bf16")]
    else:
        with pytest.raises(InputError, match="training"):
            _bench(capsys, "training", *asked)
        assert "torch: this processor has no instructions for bf16; take fp32" in capsys.readouterr().err


def test_loading_is_measured_by_recipe_with_the_share_of_each_step(capsys, monkeypatch):
    monkeypatch.setattr(loading, "SIZE", (750, 1125))
    monkeypatch.setattr(loading, "MASKS", 70)
    report = json.loads(_bench(capsys, "loading", "--json")[0])
    draws = ["jpeg decoding", "embedding", "full_stage", "align"]
    assert [row["name"] for row in report["rows"]] == [f"{name} {side} px" for side in (512, 1024) for name in draws]
    for row in report["rows"]:
        assert row["images_per_s"] == pytest.approx(1e3 / row["median_ms"])
        shares = {key: value for key, value in row.items() if key.endswith("_share")}
        assert sum(shares.values()) == pytest.approx(1, abs=0.01)
        assert shares["jpeg_share"] > 0
        assert (shares["masks_share"] > 0) == (shares["prompts_share"] > 0) == (row["name"][0] in "fa")


def test_a_table_is_printed_with_the_baseline_though_only_another_precision_was_asked_for(capsys, tmp_path):
    (tmp_path / NANO).mkdir()
    save_checkpoint(build(NANO, seed=3), tmp_path / NANO)
    Card.seal(tmp_path / NANO, Contents(kind="checkpoint", model=NANO), {})
    asked = ("--runtimes", "torch", "--precisions", "bf16", "--weights", str(tmp_path))
    out, err = _bench(capsys, "encoder", *asked)
    lines = out.splitlines()
    assert lines[0].split()[:5] == ["name", "runtime", "precision", "batch", "median"]
    assert lines[2].split()[:3] == ["bundled", "torch", "fp32"]
    assert "1.00*" in lines[2]
    assert lines[3].split()[1:3] == ["torch", "bf16"]
    assert str(tmp_path) in out
    assert "left out" not in err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("encoder", "--students", "vit_b"), "unknown student 'vit_b': there is efficientvit_sam_nano,"),
        (("encoder", "--runtimes", "tensorflow"), "unknown runtime 'tensorflow': there is torch, onnxruntime,"),
        (("encoder", "--precisions", "fp8"), "unknown precision 'fp8': there is fp32, bf16, fp16, int8."),
        (("attention", "--tokens", "0"), "--tokens '0': input should be greater than or equal to 1"),
        (("attention", "--runtimes", "openvino"), "can be measured for attention"),
        (("training", "--runtimes", "openvino"), "can be measured for training"),
        (("encoder", "--students", ","), "--students '': tuple should have at least 1 item"),
        (("encoder", "--runs", "0"), "--runs '0': input should be greater than or equal to 1."),
        (("decoder", "--prompts", "1,0"), "--prompts '1,0': input should be greater than or equal to 1."),
        (("encoder", "--weights", "nowhere"), "nowhere/efficientvit_sam_nano is not an artifact"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_words(capsys, arguments, says):
    with pytest.raises(InputError, match=re.escape(says)):
        _bench(capsys, *arguments)


def test_the_command_line_knows_every_subject():
    assert set(SUBJECTS) == set(get_args(SubjectName))


def test_help_lists_the_subjects_without_importing_them():
    command = [sys.executable, "-X", "importtime", "-m", "pipeline", "bench", "--help"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0
    assert all(f"{subject}:" in done.stdout for subject in SUBJECTS)
    assert "| torch" not in done.stderr.replace("|   ", "| ")


def test_rows_take_turns_and_their_samples_are_pooled(monkeypatch):
    monkeypatch.setattr(timing, "_busy", lambda: (0.0, 2))
    calls = []
    results = measure_interleaved([(lambda: calls.append("a"), wall), (lambda: calls.append("b"), wall)], SETTINGS)
    # Each turn begins with a call that does not count; two samples in two rounds.
    assert "".join(calls) == "aabb" * 2
    assert [result.samples for result in results] == [2, 2]


def test_rows_of_a_busy_machine_are_marked(monkeypatch):
    monkeypatch.setattr(timing, "_STAT", Path("absent"))
    timings = measure_interleaved([(lambda: None, wall)], SETTINGS)
    assert not timings[0].guarded
    from pipeline.bench.candidate import Candidate

    candidate = Candidate(
        name="x", runtime="torch", precision="fp32", call=int, batch=1, parameters=1, gmacs=1.0, size_mib=None
    )
    text = Report("encoder", "one image", SETTINGS, rows([candidate], timings), []).text()
    assert "no figure to quote" in text


def test_everything_mode_is_compared_with_segment_anythings_generator(capsys):
    asked = ("--students", NANO, "--runtimes", "torch", "--precisions", "fp32", "--points", "4", "--json")
    measured = json.loads(_bench(capsys, "everything", *asked)[0])["rows"]
    _check_rows(measured)
    assert [row["name"] for row in measured] == [
        f"{NANO} {way}" for way in ("segment_anything", "dense", "hierarchical")
    ]
    theirs, dense, hierarchical = measured
    assert theirs["points"] == dense["points"] == 16 >= hierarchical["points"] >= 4
    assert theirs["masks"] == dense["masks"] > 0
    assert theirs["gmacs"] > dense["gmacs"] >= hierarchical["gmacs"]
