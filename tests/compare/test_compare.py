import json
import re
import shutil

import pytest

from pipeline.compare import CompareConfig, compare, leaderboard_text
from pipeline.core.artifact import Card, Contents, digest, read_refusals
from pipeline.core.errors import InputError
from pipeline.core.log import silent
from pipeline.stages import COMPARE
from tests.compare.fabricated import evaluation, refusal, reseal, small_world

CONFIG = CompareConfig(title="Teacher & <students>", pictures=2, extremes=1)


@pytest.fixture
def world(tmp_path):
    return small_world(tmp_path)


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    """Where it is, the rows and the page of one comparison; for tests that only look."""
    place = small_world(tmp_path_factory.mktemp("compared"))
    return place, *_compare(place)


def _compare(world, name="out", config=CONFIG):
    out = world / name
    out.mkdir()
    contents = compare(
        config,
        prepare=world / "prepare",
        quantize=world / "quantize",
        evaluate_teacher=world / "evaluate_teacher",
        evaluate=world / "evaluate",
        out=out,
        log=silent,
    )
    assert contents == Contents(kind="comparison")
    return json.loads((out / "leaderboard.json").read_text()), (out / "report.html").read_text()


def test_the_teacher_is_first_and_students_follow_by_box_miou(compared):
    _, rows, _ = compared
    assert [(r["role"], r["precision"]) for r in rows] == [
        ("teacher", "fp32"),
        ("student", "fp32"),
        ("student", "int8"),
        ("baseline", ""),
        ("baseline", ""),
    ]
    assert rows[1]["box_miou"] > rows[2]["box_miou"]
    assert rows[0]["box_retained"] == 1.0
    assert rows[2]["box_retained"] == pytest.approx(rows[2]["box_miou"] / rows[0]["box_miou"])


def test_rows_name_the_measured_artifact_and_its_digest(compared):
    _, rows, _ = compared
    assert rows[0]["artifact"] == "artifacts/teacher"
    assert rows[2]["artifact"] == "artifacts/build_engine/nano/int8"
    assert rows[2]["digest"] == b"nanoint8".hex().ljust(64, "0")


def test_metrics_are_few_numbers_of_the_selected_student_and_the_teacher(compared):
    world, rows, _ = compared
    metrics = json.loads((world / "out" / "metrics.json").read_text())
    assert metrics["box_miou"] == rows[1]["box_miou"]
    assert metrics["latency_ms"] == rows[1]["latency_ms"]
    assert metrics["teacher_box_miou"] == 1.0
    assert len(metrics) <= 8
    assert all(isinstance(value, float) for value in metrics.values())


def test_an_evaluation_of_another_dataset_is_left_out_and_named(world):
    place = world / "evaluate" / "old" / "fp32"
    evaluation(place, "f" * 64, "build_engine", "old", "fp32", "student", 1)
    rows, report = _compare(world)
    assert "old" not in {row["model"] for row in rows}
    assert "old fp32 (measured on another dataset)" in report


def test_a_refusal_is_listed_and_struck_with_its_rule_and_figure_and_has_no_row(world):
    made = Card.read(world / "prepare").digest
    refusal(world / "evaluate" / "bad" / "int8", made, "bad", "int8")
    refusal(world / "evaluate" / "old" / "int8", "f" * 64, "old", "int8")
    rows, report = _compare(world)
    assert [row["model"] for row in rows if row["role"] != "baseline"] == ["bundled", "nano", "nano"]
    [one] = json.loads((world / "out" / "refusals.json").read_text())
    assert (one["model"], one["precision"], one["stage"]) == ("bad", "int8", "build_engine")
    assert (one["rule"], one["value"], one["limit"]) == ("build_engine.min_cosine", 0.958918, 0.97)
    line = re.search(r'<tr class="refused">.*?</tr>', report, re.DOTALL).group()
    assert "bad" in line
    assert 'colspan="6"' in line
    assert "refused by build_engine.min_cosine: 0.958918, limit 0.97" in line
    assert "<b>bad int8</b> by build_engine: the openvino engine is too far" in report
    assert "old int8 (measured on another dataset)" in report
    text = leaderboard_text([row | {"guarded": True} for row in rows], read_refusals(world / "out")).splitlines()
    assert text[-3] == text[1]
    assert text[-2].replace("\u0336", "") == "bad int8  refused by build_engine.min_cosine: 0.958918, limit 0.97"
    assert text[-2].startswith("b\u0336a\u0336d\u0336")


def test_where_all_students_are_refused_the_teacher_stands_alone(world):
    made = Card.read(world / "prepare").digest
    shutil.rmtree(world / "evaluate")
    for precision in ("fp32", "int8"):
        refusal(world / "evaluate" / "nano" / precision, made, "nano", precision)
    rows, report = _compare(world)
    assert [row["role"] for row in rows] == ["teacher", "baseline", "baseline"]
    assert report.count('<tr class="refused">') == 2
    assert list(read_refusals(world / "out")) == ["nano fp32", "nano int8"]


def test_without_refusals_the_list_is_empty(compared):
    world, _, report = compared
    assert json.loads((world / "out" / "refusals.json").read_text()) == []
    assert read_refusals(world / "out") == {}
    assert read_refusals(world) == {}
    assert "efused" not in report.partition("</style>")[2]


def test_a_teacher_of_another_dataset_is_refused(world):
    shutil.rmtree(world / "evaluate_teacher")
    evaluation(world / "evaluate_teacher", "f" * 64, "teacher", "bundled", "fp32", "teacher", 0)
    with pytest.raises(InputError, match="another dataset"):
        _compare(world)


def test_the_same_input_gives_the_same_bytes(world):
    _compare(world, "a")
    _compare(world, "b")
    assert digest(world / "a") == digest(world / "b")
    assert {p.name for p in (world / "a" / "plots").iterdir()} == {
        "box_latency.png",
        "box_size.png",
        "click_latency.png",
        "click_size.png",
        "box_bands.png",
        "click_bands.png",
    }


def test_the_report_needs_nothing_but_itself_and_names_no_machine(compared):
    world, _, report = compared
    assert not re.findall(r"https?:|//[a-z]|<script[^>]|<link|@import|url\((?!#)", report)
    sources = re.findall(r'(?:src|href)="([^"]*)"', report)
    assert sources
    assert all(source.startswith(("data:image/jpeg;base64,", "#")) for source in sources)
    assert str(world) not in report
    ids = re.findall(r'\bid="([^"]+)"', report)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r"(?:url\(|href=\")#([^\")]+)", report)) <= set(ids)


def test_names_are_escaped(world):
    evaluation(
        world / "evaluate" / "evil" / "fp32",
        Card.read(world / "prepare").digest,
        "build_engine",
        "<b onclick=x>&",
        "fp32",
        "student",
        1,
    )
    _, report = _compare(world)
    assert "<b onclick" not in report
    assert "&lt;b onclick=x&gt;&amp;" in report
    assert "<title>Teacher &amp; &lt;students&gt;</title>" in report


def test_pictures_show_prompt_truth_and_every_model(compared):
    _, _, report = compared
    tiles = report.count("data:image/jpeg;base64,")
    # Two objects with teacher and one precision open, the other folded below the prompts once more; and the worst of
    # each student beside the teacher. Nobody is ahead of a perfect teacher.
    assert tiles == 2 * ((1 + 2) + (1 + 1)) + 2 * (1 + 2)
    assert "Largest losses against the teacher" in report
    assert "Largest gains over the teacher" not in report


def test_without_latency_the_report_says_so(world):
    dataset = Card.read(world / "prepare").digest
    for place in (world / "evaluate_teacher", world / "evaluate"):
        shutil.rmtree(place)
    evaluation(world / "evaluate_teacher", dataset, "teacher", "bundled", "fp32", "teacher", 0, timed=False)
    place = world / "evaluate" / "nano" / "fp32"
    evaluation(place, dataset, "build_engine", "nano", "fp32", "student", 1, timed=False)
    rows, report = _compare(world)
    assert {row["latency_ms"] for row in rows} == {None}
    assert "not measured" in report
    assert not (world / "out" / "plots" / "box_latency.png").exists()


def test_a_teacher_alone_can_be_reported(world):
    shutil.rmtree(world / "evaluate")
    rows, report = _compare(world, config=CompareConfig(title="t", pictures=1, extremes=2))
    assert [row["role"] for row in rows] == ["teacher", "baseline", "baseline"]
    assert "Leaderboard" in report


def test_latency_measured_beside_other_work_is_flagged(compared):
    _, _, report = compared
    assert "The machine was busy while the latency of nano int8 was measured" in report


def test_a_damaged_evaluation_is_named(world):
    (world / "evaluate" / "nano" / "int8" / "instances.json").write_text("[")
    with pytest.raises(InputError, match=r"nano.int8.instances\.json"):
        _compare(world)


def test_the_table_is_aligned_and_has_a_dash_for_what_is_missing(compared):
    _, rows, _ = compared
    rows = [row | {"guarded": True} for row in rows]
    text = leaderboard_text([rows[0] | {"latency_ms": None}, *rows[1:]])
    *lines, legend = text.splitlines()
    assert len(lines) == 9
    assert lines[1] == lines[3] == lines[6] == re.sub(r"[^ ]", "─", lines[1])
    assert len({len(line) for line in lines}) == 1
    assert legend.startswith("\u25bc no better")
    assert lines[2].split()[:3] == ["bundled", "fp32", "torch"]
    column = lines[0].index("latency ms")
    assert lines[2][column : column + 10].strip() == "-"
    assert lines[5][column : column + 10].strip() == "35.0"


def test_a_latency_of_a_busy_machine_is_marked(compared):
    _, rows, _ = compared
    text = leaderboard_text([rows[0] | {"guarded": True}, *(row | {"guarded": False} for row in rows[1:])])
    marked = [line for line in text.splitlines() if " !" in line]
    assert len(marked) == len(rows) - 1
    assert "upper bound" in text
    assert "!" not in leaderboard_text([row | {"guarded": True} for row in rows])


def test_trivial_masks_stand_below_the_students_and_what_they_beat_is_marked(compared):
    _, rows, report = compared
    assert [row["model"] for row in rows if row["role"] == "baseline"] == ["filled box", "ellipse in the box"]
    assert {row["trivial_box_miou"] for row in rows if row["role"] != "baseline"} == {1.0}
    lines = leaderboard_text(rows).splitlines()
    marked = [line.split()[0] for line in lines if "\u25bc" in line]
    assert marked == ["bundled", "nano", "nano", "\u25bc"]  # rows, and what the mark means
    assert lines.index(next(x for x in lines if x.startswith("filled box"))) > 5
    assert "no better than a trivial mask" in report
    assert "All 3 models are no better than a trivial mask" in " ".join(report.split())


def test_what_beats_trivial_masks_is_not_marked(world):
    reseal(world / "evaluate_teacher", {"ellipse": {"box_miou": 0.01}, "disc": {"click_miou": 0.01, "radius": 0.1}})
    rows, report = _compare(world)
    assert "\u25bc" not in leaderboard_text(rows)
    assert "no better than a trivial mask" not in report


def test_a_precision_that_is_not_faster_is_told(world):
    for precision, time in (("fp32", 20.0), ("int8", 21.5)):
        place = world / "evaluate/nano" / precision
        metrics = json.loads((place / "metrics.json").read_text())
        (place / "metrics.json").write_text(json.dumps(metrics | {"encoder_ms": time}))
    _, report = _compare(world)
    said = " ".join(re.sub("<[^>]*>", "", report).split())
    for words in ("on this machine for the only student: nano int8 encodes in 21.5 ms", "fp32 in 20.0 ms."):
        assert words in said


def test_only_listed_students_are_compared_and_a_listed_one_without_evaluation_is_named(world, caplog):
    everything, _ = _compare(world)
    assert [row["precision"] for row in everything] == ["fp32", "fp32", "int8", "", ""]
    lists = {"students": ["nano", "tiny"], "precisions": ["int8"]}
    rows, report = _compare(world, "listed", CONFIG.model_copy(update=lists))
    assert [(row["role"], row["model"], row["precision"]) for row in rows[1:-2]] == [("student", "nano", "int8")]
    assert "tiny int8" in report
    assert "tiny int8 is left out of the comparison: not evaluated" in caplog.text
    assert "nano fp32" not in caplog.text


def test_the_stage_compares_what_params_list():
    params = {"students": ["nano"], "precisions": ["fp32"], "compare": {"title": "t", "pictures": 1, "extremes": 1}}
    params["promote"] = {"max_latency_ms": 5.0}
    assert COMPARE.config(params, {}).candidates() == [("nano", "fp32")]
    assert COMPARE.config(params, {}).promote.max_latency_ms == 5.0
    assert COMPARE.to_dvc()["params"] == ["compare", "students", "precisions", "promote"]
