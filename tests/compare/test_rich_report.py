"""The report of evaluations that measured everything."""

import json
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.compare import CompareConfig
from pipeline.compare import published as papers
from pipeline.compare.leaderboard import pareto_front
from pipeline.compare.measures import display_name, sections
from pipeline.compare.published import beside_measured
from pipeline.compare.quantization import quantization
from pipeline.compare.sensitivity import sensitivities
from pipeline.core.errors import InputError
from pipeline.core.provenance import commit
from pipeline.models import STUDENTS, TEACHERS
from tests.compare.fabricated import report, rich_world, sensitivity

EXTRA_PLOTS = {"clicks.png", "clicks_fed.png", "box_calibration.png", "click_calibration.png"}

_SET = {"digest": "0" * 64, "annotated_images": 2, "instances": 9, "protocol": "published"}
SCENES = {"": _SET | {"name": "validation", "images": 2}}
COCO = {"": _SET | {"name": "coco", "images": 5000}}


@pytest.fixture(scope="module")
def rich(tmp_path_factory):
    """Where it is, the models' rows and the page."""
    place = rich_world(tmp_path_factory.mktemp("rich"), images=2)
    page = report(place, CompareConfig(title="All", pictures=1, extremes=1)).read_text()
    rows = json.loads((place / "out" / "leaderboard.json").read_text())
    return place / "out", [row for row in rows if row["role"] != "baseline"], page


def texts(grid):
    return [[cell.text for cell in line.cells] for line in grid.lines]


def test_every_measure_has_its_section_table_and_plot(rich):
    out, rows, page = rich
    titles = re.findall(r"<h2>([^<]+)</h2>", page)
    assert titles == [
        "Pictures",
        "Leaderboard",
        "Accuracy against cost",
        "More plots",
        "Accuracy by object size",
        "Clicks",
        "Agreement, boundaries and calibration",
        "Average precision with a detector&#39;s boxes",
        "Everything mode",
        "Effect of quantization",
        "Quantization sensitivity by layer",
        "Everything mode: examples",
        "Largest losses against the teacher",
        "Largest gains over the teacher",
        "Published and measured results",
        "Lineage",
    ]
    assert {path.name for path in (out / "plots").iterdir()} >= EXTRA_PLOTS
    assert rows[1]["click5_fed_miou"] > rows[1]["click5_miou"] > rows[1]["click3_miou"] > rows[1]["click_miou"]


def test_the_contents_lead_to_every_section(rich):
    _, _, page = rich
    links = re.findall(r'<a href="#([^"]+)">', page)
    assert links == ["pictures", "leaderboard", "plots", "details"]
    sections = re.findall(r'<section id="([^"]+)">(?:<details>)?', page)
    assert sections[:3] == links[:3]
    folded = page[page.index('id="details"') :]
    assert re.findall(r'<section id="([^"]+)"><details>', folded) == sections[3:]


def test_every_student_has_its_own_worst_masks(rich):
    _, rows, page = rich
    worst = page[page.index("Largest losses against the teacher</h2>") :]
    for row in rows[1:]:
        assert f"<h3>{row['model']} {row['precision']}</h3>" in worst


def test_everything_mode_is_shown_by_model_and_mode(rich):
    _, rows, page = rich
    for mode in ("dense", "hierarchical"):
        assert len(re.findall(rf'alt="[^"]*, {mode}: \d+ masks?"', page)) == 2 * len(rows)
    assert "Segmentation without prompts, measured on 2 images." in page


def test_the_lineage_names_commit_data_teacher_and_engines(rich):
    out, rows, page = rich
    lineage = page[page.index("Lineage</h2>") :]
    assert (commit().hash or "not in a repository") in lineage
    for row in rows:
        assert row["digest"] in lineage
    card = json.loads((out.parent / "prepare" / "card.json").read_text())
    assert card["digest"] in lineage


def test_every_metric_of_every_model_is_in_the_leaderboard(rich):
    out, rows, _ = rich
    assert len(json.loads((out / "metrics.json").read_text())) == 8
    assert all(row["coco_vitdet_ap_small"] > 0 for row in rows)
    assert rows[0]["box_agreement"] is None
    assert "instances" not in rows[0]


def test_dvc_gets_rows_with_the_same_keys(rich):
    out, rows, _ = rich
    points = json.loads((out / "plots.json").read_text())
    assert len(points) == len(rows)
    assert len({frozenset(point) for point in points}) == 1


def test_the_cost_of_quantization_is_a_difference_of_every_figure_of_both(rich):
    _, rows, _ = rich
    [grid] = quantization(rows).grids
    assert [column.title for column in grid.columns[1:]] == [
        f"{model} int8" for model in dict.fromkeys(row["model"] for row in rows[1:])
    ]
    found = {line.cells[0].text: line.cells[1:] for line in grid.lines}
    tiny = {row["precision"]: row for row in rows if row["model"] == "tinysam_nano"}
    before, after = tiny["fp32"], tiny["int8"]
    place = [column.title for column in grid.columns[1:]].index("tinysam_nano int8")
    assert found["Box mIoU"][place].value == after["box_miou"] - before["box_miou"]
    assert found["Box mIoU"][place].tone == "worse"
    assert found["Latency ms"][place].tone == "better"
    assert "Parameters" not in found  # which do not change


def test_nothing_is_compared_with_a_precision_that_is_not_there(rich):
    _, rows, _ = rich
    assert quantization([row for row in rows if row["precision"] != "int8"]) is None
    assert quantization([row for row in rows if row["role"] == "teacher" or row["precision"] == "int8"]) is None


def test_what_was_not_measured_has_no_table(rich):
    _, rows, _ = rich
    bare = [{name: None if isinstance(value, float) else value for name, value in row.items()} for row in rows]
    assert sections(bare, []) == []


@pytest.mark.parametrize(
    ("name", "title"),
    [
        ("box_miou", "Box mIoU"),
        ("click3_fed_miou_small", "3 clicks, mask fed back mIoU small"),
        ("coco_vitdet_ap", "Coco vitdet AP"),
        ("everything_dense_ar1000", "Everything dense AR@1000"),
    ],
)
def test_metrics_have_display_names(name, title):
    assert display_name(name) == title


points = st.lists(st.tuples(st.floats(0.1, 100), st.floats(0, 1)), min_size=1, max_size=12)


@given(points)
def test_the_front_is_all_that_nothing_beats(found):
    costs, scores = zip(*found, strict=True)
    edge = pareto_front(costs, scores)
    for i, (cost, score) in enumerate(found):
        beaten = any(c <= cost and s >= score and (c, s) != (cost, score) for c, s in found)
        if i in edge:
            assert not beaten
        else:
            assert beaten or (cost, score) in [found[j] for j in edge]


def test_published_tables_are_whole_and_name_their_source():
    published = papers.read()
    known = {*STUDENTS, *TEACHERS}
    assert {table.paper for table in published.tables} == set(published.papers)
    for table in published.tables:
        assert table.mark in "PCD"
        assert table.location
        assert table.protocol
        for row in table.rows:
            assert len(row.values) == len(table.columns)
            assert row.student is None or row.student in known
            assert row.mark is None or row.mark in "PCD"


def test_published_figures_are_those_of_the_papers():
    tables = {table.title: {row.student: row.values for row in table.rows} for table in papers.read().tables}
    assert tables["mIoU with ground-truth boxes, COCO"]["efficientvit_sam_xl1"] == [79.9, 75.8, 82.2, 83.8]
    assert tables["mIoU with clicks, LVIS"]["vit_h"] == [59.2, 66.0, 66.8]
    assert tables["Mask AP with ViTDet's boxes, COCO"]["efficientvit_sam_l0"] == [45.7, 28.2, 49.5, 63.4]


def test_measured_rows_stand_below_the_published_with_marks_for_what_differs(rich):
    _, rows, _ = rich
    grids = {grid.title: grid for grid in beside_measured([row | {"datasets": SCENES} for row in rows]).grids}
    boxes = grids["mIoU with ground-truth boxes, COCO"]
    kinds = [line.kind for line in boxes.lines]
    assert kinds == ["published", "published", "teacher", "student", "student"]
    assert texts(boxes)[3][1] == f"{100 * rows[1]['box_miou']:.1f}"
    notes = [boxes.notes[letter] for letter in boxes.lines[4].cells[0].marks]
    assert any(note.startswith("other data: validation, 2 images, not COCO val2017") for note in notes)
    assert any(note.startswith("other model") for note in notes)
    assert any(note.startswith("other precision: int8") for note in notes)
    assert not any(line.cells[0].marks for line in boxes.lines[:2])
    speed = grids["Latency and memory"]
    assert any(note.startswith("other machine") for note in speed.notes.values())


def test_the_same_data_and_model_are_not_marked_as_others(rich):
    _, rows, _ = rich
    official = rows[1] | {"model": "efficientvit_sam_xl1"}
    grids = {g.title: g for g in beside_measured([row | {"datasets": COCO} for row in (rows[0], official)]).grids}
    boxes = grids["mIoU with clicks, COCO"]
    assert boxes.lines[-1].cells[0].marks == ""


def test_layers_that_suffer_from_rounding_are_shown_with_what_keeping_them_gives(rich):
    out, rows, page = rich
    part = page.partition('<section id="sensitivity">')[2].partition("</section>")[0]
    lowered = [row for row in rows if row["precision"] == "int8"]
    assert re.findall(r"<summary>([^<]+)<small>4 images", part) == [f"{row['model']} int8" for row in lowered]
    assert part.count("quantize.keep: [stage.2.&lt;layer11&gt;]") == len(lowered)
    for row in lowered:
        stem = f"sensitivity_{row['model']}_int8"
        assert (out / "plots" / f"{stem}_layers.png").is_file()
        assert (out / "plots" / f"{stem}_worst.png").is_file()
    assert part.count("<svg") == 2 * len(lowered)
    assert "1.2 % of the values are clipped" in part


def test_the_table_of_sensitivity_says_how_far_each_line_is_from_rounding_all(tmp_path):
    folder = tmp_path / "s" / "int8"
    folder.mkdir(parents=True)
    (folder / "sensitivity.json").write_text(json.dumps(sensitivity(np.random.default_rng(0), 0.7)))
    rows = [{"model": "s", "precision": p, "role": "student"} for p in ("fp32", "int8")]
    (result,) = sensitivities(rows, tmp_path, tmp_path)
    named = {line.cells[0].text: line.cells[1:] for line in result.grid.lines}
    assert [cell.text for cell in named["none quantized"]] == ["0", "0.715", "0.615", "0.995"]
    assert [cell.text for cell in named["all quantized"]] == ["12", "0.700", "0.600", "0.980"]
    assert [cell.tone for cell in named["all but stage.0"]] == ["", "", "", ""]  # within noise
    suggested = named["all but the suggested layers"]
    assert [cell.text for cell in suggested] == ["11", "0.710", "0.610", "0.990"]
    assert [(cell.below, cell.tone) for cell in suggested[1:]] == [("+0.010", "better")] * 3


@pytest.mark.parametrize("damage", ["{", "{}", '{"worst": []}'])
def test_a_damaged_sensitivity_report_is_refused_by_name(tmp_path, damage):
    folder = tmp_path / "s" / "int8"
    folder.mkdir(parents=True)
    (folder / "sensitivity.json").write_text(damage)
    with pytest.raises(InputError, match=r"sensitivity.json cannot be read .*: run `dvc repro`"):
        sensitivities([{"model": "s", "precision": "int8", "role": "student"}], tmp_path, tmp_path)


def test_tables_are_judged_by_the_set_whose_figures_they_show(rich):
    """A detector's table by the detector's data, another by the set of its name and size."""
    _, rows, _ = rich
    sets = {
        "": _SET | {"name": "coco", "images": 5000},
        "lvis_": _SET | {"name": "lvis", "images": 500, "protocol": "ours"},
        "lvis_vitdet_": _SET | {"name": "lvis_v1_val", "images": 19809},
    }
    row = rows[1] | {"model": "efficientvit_sam_xl1", "precision": "fp32", "datasets": sets}
    row |= {"lvis_box_miou": 0.5, "lvis_vitdet_ap": 0.4}
    grids = {g.title: g for g in beside_measured([rows[0], row]).grids}
    last = {title: grids[title].lines[-1].cells for title in grids}
    assert last["mIoU with ground-truth boxes, COCO"][0].marks == ""
    lvis = grids["mIoU with ground-truth boxes, LVIS"]
    assert last[lvis.title][1].text == "50.0"
    notes = [lvis.notes[letter] for letter in last[lvis.title][0].marks]
    assert any(note.startswith("other data: lvis, 500 images") for note in notes)
    assert any(note.startswith("other protocol: ours") for note in notes)
    assert last["Mask AP with ViTDet's boxes, LVIS"][0].marks == ""


@pytest.mark.parametrize(("name", "images"), [("mine", 5000), ("coco", 40), ("lvis_v05", 5000)])
def test_a_set_of_another_name_or_size_is_other_data(rich, name, images):
    _, rows, _ = rich
    row = rows[1] | {"datasets": {"": _SET | {"name": name, "images": images}}}
    boxes = {g.title: g for g in beside_measured([rows[0], row]).grids}["mIoU with ground-truth boxes, COCO"]
    assert any(note.startswith("other data") for note in boxes.notes.values())
