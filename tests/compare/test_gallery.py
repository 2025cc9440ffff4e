"""Pictures stand in rows by model, prompts first, and none is left over."""

import re
from dataclasses import replace

import pytest

from pipeline.compare import CompareConfig
from pipeline.compare.evaluations import Evaluation
from pipeline.compare.gallery import of_everything, of_objects, of_photographs, representatives
from pipeline.compare.pictures import Case, Tile
from pipeline.core.artifact import Card
from tests.compare.fabricated import photographs, report, rich_world

CARD = Card(kind="evaluation", model="s", precision="fp32", digest="0", parents={})


def evaluation(model, precision, role, wrong):
    return Evaluation(
        model=model,
        precision=precision,
        role=role,
        photographs=photographs(wrong),
        runtime="torch",
        card=CARD,
        source="",
        source_stage="",
        **{name: {} for name in ("metrics", "predictions", "scores", "calibration", "datasets")},
        everything=[],
        everything_images=None,
        guarded=None,
    )


EVALUATIONS = [
    evaluation(m, p, r, wrong)
    for m, p, r, wrong in (
        ("t", "fp32", "teacher", 0.0),
        ("s", "fp32", "student", 0.1),
        ("s", "int8", "student", 0.2),
        ("z", "int8", "student", 0.3),
    )
]
OPEN = [True, False, True, True]


def cases(count):
    return [Case("box", "", [Tile(f"{n}.{i}", None, "") for i in range(1 + len(EVALUATIONS))]) for n in range(count)]


@pytest.mark.parametrize("count", [1, 5, 6, 8, 13])
def test_every_object_is_shown_once_for_each_model_and_rows_are_of_one_length(count):
    groups = of_objects(cases(count), EVALUATIONS, OPEN)
    assert [group.folded for group in groups] == [False, *(True for _ in groups[1:])]
    for group in groups:
        assert [row.name for row in group.rows] == ["Prompt", "t", "s", "z"]
        assert [row.about for row in group.others] == ["", "fp32"]
        assert {len(row.tiles) for row in (*group.rows, *group.others)} == {group.columns}
    shown = [tile.caption for group in groups for row in (*group.rows, *group.others[1:]) for tile in row.tiles]
    assert sorted(shown) == sorted(tile.caption for case in cases(count) for tile in case.tiles)


def test_one_precision_of_each_student_is_open_the_selected_or_the_smallest():
    rows = [{"role": "teacher", "model": "t", "size_mib": 9.0}]
    rows += [{"role": "student", "model": m, "size_mib": size} for m, size in (("a", 4), ("a", 2), ("b", 4), ("b", 2))]
    assert representatives(rows, None) == [True, False, True, False, True]
    assert representatives(rows, rows[3]) == [True, False, True, True, False]


def test_photographs_have_prompts_masks_credits_and_everything_mode():
    [pictures] = of_photographs(EVALUATIONS, OPEN)
    assert [tile.caption for tile in pictures.rows[0].tiles] == ["one click", "box", "box", "everything"]
    assert [tile.caption for tile in pictures.rows[1].tiles] == ["", "", "", "6 masks"]
    assert [tile.iou for tile in pictures.rows[1].tiles] == [None] * 4
    ious = [tile.iou for tile in pictures.rows[2].tiles]
    assert all(0.5 < value < 1 for value in ious[:3])
    assert ious[3] is None
    for words in ("CC BY 2.0", "flower.jpg © vultilion", "china.jpg © danielbuechele"):
        assert words in pictures.note


def test_evaluations_without_photographs_have_no_row_of_them():
    older = replace(EVALUATIONS[1], photographs={})
    assert of_photographs([EVALUATIONS[0], older], [True, True]) == []


def test_everything_mode_stands_in_rows_by_model():
    columns = [case.tiles for case in cases(6)]
    groups = of_everything(columns, EVALUATIONS)
    assert [group.columns for group in groups] == [4, 2]
    assert [row.name for row in groups[0].rows] == ["Image", "t", "s", "s", "z"]
    assert groups[0].others == []


def test_pictures_come_before_the_leaderboard_with_photographs_first(tmp_path):
    page = report(rich_world(tmp_path, images=2), CompareConfig(title="All", pictures=2, extremes=1)).read_text()
    order = ["Selected for registration", "<h3>Photographs</h3>", "<h3>Objects of the validation split</h3>"]
    order += ['id="leaderboard"', 'id="plots"', 'id="details"']
    places = [page.index(mark) for mark in order]
    assert places == sorted(places)
    assert re.search(r'alt="efficientvit_sam_nano int8, IoU 0\.\d{3}"', page)
