"""Rows of pictures by model: objects of the validation split with their prompts, and two real photographs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from pipeline.compare.evaluations import Evaluation
from pipeline.compare.everything import painted
from pipeline.compare.leaderboard import Row
from pipeline.compare.pictures import PROMPT_NAMES, STUDENT, TEACHER, Case, Tile, as_uri, mark_prompt, shade
from pipeline.data import sample_photographs
from pipeline.ops import masks
from pipeline.ops.metrics import iou

_COLUMNS = 6
"""Pictures in a row."""
_MODES = 4
"""Pictures of everything mode in a row."""
_WIDTH = 400
"""Width of a photograph in pixels."""


@dataclass(frozen=True)
class PictureRow:
    """One model's pictures, or the prompts."""

    name: str
    about: str
    tiles: Sequence[Tile]


@dataclass(frozen=True, kw_only=True)
class Pictures:
    """Rows of equally many pictures: prompts first, then the teacher and the students."""

    title: str
    note: str
    rows: Sequence[PictureRow]
    others: Sequence[PictureRow]
    """Further precisions of the students, folded; the prompts first."""
    folded: bool = False

    @property
    def columns(self) -> int:
        """Pictures in a row."""
        return len(self.rows[0].tiles)


def representatives(rows: Sequence[Row], chosen: Row | None) -> list[bool]:
    """For each row of the leaderboard, whether its pictures are open: the teacher and one precision of each student.

    That is the chosen engine, and of other students the smallest one.
    """
    by_model: dict[str, int] = {}
    for i, row in enumerate(rows):
        if row["role"] != "student":
            continue
        other = by_model.get(row["model"])
        if other is None or row is chosen or (rows[other] is not chosen and row["size_mib"] < rows[other]["size_mib"]):
            by_model[row["model"]] = i
    shown = set(by_model.values())
    return [row["role"] == "teacher" or i in shown for i, row in enumerate(rows)]


def of_objects(cases: Sequence[Case], evaluations: Sequence[Evaluation], shown: Sequence[bool]) -> list[Pictures]:
    """Arrange cases by model, six in a row; the first row is open.

    Args:
        cases: From `pictures.gallery`: the prompt and each evaluation's mask.
        evaluations: In the cases' order.
        shown: Whether each evaluation's pictures are open.
    """
    groups = [cases[start : start + _COLUMNS] for start in range(0, len(cases), _COLUMNS)]
    note = (
        "A typical object of each of the first validation images: the one with the teacher's median IoU. Green is the "
        "ground truth, yellow the prompt; the number is the IoU of the mask with the ground truth, 1 being perfect."
    )
    return [
        _pictures(
            "Objects of the validation split" if not number else "More objects",
            note if not number else "",
            [case.tiles for case in group],
            evaluations,
            shown,
            folded=bool(number),
        )
        for number, group in enumerate(groups)
    ]


def of_everything(columns: Sequence[Sequence[Tile]], evaluations: Sequence[Evaluation]) -> list[Pictures]:
    """Arrange the columns of everything mode by model, four in a row."""
    shown = [True] * len(evaluations)
    groups = [columns[start : start + _MODES] for start in range(0, len(columns), _MODES)]
    return [_pictures("", "", group, evaluations, shown, first="Image") for group in groups]


def of_photographs(evaluations: Sequence[Evaluation], shown: Sequence[bool]) -> list[Pictures]:
    """Masks of scikit-learn's sample photographs; empty if an evaluation has none.

    Raises:
        InputError: scikit-learn is not installed.
    """
    if not all(evaluation.photographs for evaluation in evaluations):
        return []
    columns = [_prompted(evaluations, number) for number in range(len(evaluations[0].photographs["prompts"]))]
    if all("everything" in evaluation.photographs for evaluation in evaluations):
        columns.append(_everything(evaluations))
    names = dict.fromkeys(answer["file_name"] for answer in evaluations[0].photographs["prompts"])
    credit = ", ".join(f"{name} {sample_photographs.CREDITS[name]}" for name in names)
    note = (
        "Real photographs without ground truth: the number is the IoU of a student's mask with the teacher's. "
        f"They are scikit-learn's samples under {sample_photographs.LICENSE}: {credit}."
    )
    return [_pictures("Photographs", note, columns, evaluations, shown)]


def _pictures(
    title: str,
    note: str,
    columns: Sequence[Sequence[Tile]],
    evaluations: Sequence[Evaluation],
    shown: Sequence[bool],
    *,
    folded: bool = False,
    first: str = "Prompt",
) -> Pictures:
    """Transpose columns of tiles, the prompt's first, into rows by model."""
    prompts, *lines = ([column[i] for column in columns] for i in range(1 + len(evaluations)))
    top = PictureRow(first, "", prompts)
    rows = [PictureRow(e.model, _about(e), line) for e, line in zip(evaluations, lines, strict=True)]
    others = [row for row, is_open in zip(rows, shown, strict=True) if not is_open]
    return Pictures(
        title=title,
        note=note,
        rows=[top, *(row for row, is_open in zip(rows, shown, strict=True) if is_open)],
        others=[top, *others] if others else [],
        folded=folded,
    )


def _about(evaluation: Evaluation) -> str:
    return f"teacher · {evaluation.precision}" if evaluation.role == "teacher" else evaluation.precision


def _prompted(evaluations: Sequence[Evaluation], number: int) -> list[Tile]:
    """A column: the prompt on its photograph, and each model's mask."""
    answers = [evaluation.photographs["prompts"][number] for evaluation in evaluations]
    prompt, numbers = answers[0]["prompt"], answers[0]["numbers"]
    image = sample_photographs.read(answers[0]["file_name"])
    found = [masks.decode(answer["segmentation"]) for answer in answers]
    small = _small(image)
    scale = small.shape[1] / image.shape[1]
    drawn = mark_prompt(small.copy(), prompt, [scale * value for value in numbers])
    tiles = [Tile(PROMPT_NAMES[prompt], None, as_uri(drawn))]
    for evaluation, mask in zip(evaluations, found, strict=True):
        is_teacher = evaluation.role == "teacher"
        inside = _small(np.repeat(mask[..., None], 3, axis=2).astype(np.uint8) * 255)[..., 0] > 127
        picture = as_uri(shade(small, inside, TEACHER if is_teacher else STUDENT))
        tiles.append(Tile("", None if is_teacher else iou(mask, found[0]), picture, evaluation.name))
    return tiles


def _everything(evaluations: Sequence[Evaluation]) -> list[Tile]:
    """A column: a photograph, and all masks of each model."""
    name = evaluations[0].photographs["everything"]["file_name"]
    image = sample_photographs.read(name)
    tiles = [Tile("everything", None, as_uri(_small(image)))]
    for evaluation in evaluations:
        records = evaluation.photographs["everything"]["records"]
        caption = f"{len(records)} {'mask' if len(records) == 1 else 'masks'}"
        tiles.append(Tile(caption, None, as_uri(_small(painted(image, records))), evaluation.name))
    return tiles


def _small(image: UInt8[np.ndarray, "h w 3"]) -> UInt8[np.ndarray, "h2 w2 3"]:
    height = round(image.shape[0] * _WIDTH / image.shape[1])
    return np.asarray(Image.fromarray(image).resize((_WIDTH, height), Image.Resampling.LANCZOS))
