"""Bundle a distilled student: its image encoder in half precision, with a card of its figures.

Its prompt encoder and mask decoder are the bundled teacher's, and are not stored again.
"""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import torch

from pipeline.core.artifact import Card, Contents, write_json
from pipeline.core.bundled import STUDENTS, TEACHERS
from pipeline.core.config import find, read_params
from pipeline.core.errors import InputError
from pipeline.core.stage import ARTIFACTS
from pipeline.models.cost import count_parameters
from pipeline.models.sam import WEIGHTS, Sam
from pipeline.models.students import load_checkpoint
from pipeline.train_teacher.bundling import TRAINING, compact, held_out, install_files, summary
from pipeline.train_teacher.material import read_material
from pipeline.train_teacher.monitor import MODEL

ENCODER = "image_encoder."
RETAINED = ("photographs_box_miou", "photographs_click_miou", "scenes_box_miou", "scenes_click_miou")
"""Figures that are also given as a share of the teacher's."""


def bundle(checkpoint: Path, data: Path, params: Path) -> str:
    """Replace a bundled student by the image encoder of a checkpoint.

    Args:
        checkpoint: Checkpoint artifact whose prompt encoder and mask decoder are the bundled teacher's.
        data: Folder of photographs with masks, see `read_material`; the 40 held-out ones are measured.
        params: The parameters that the checkpoint was made with.

    Returns:
        Directory and held-out accuracy, in one line.

    Raises:
        InputError: The checkpoint is not of a bundled student, or its decoder is not the bundled teacher's.
    """
    card = Card.verified(checkpoint)
    if card.kind != "checkpoint" or card.model is None or card.model not in STUDENTS:
        raise InputError(f"{checkpoint} is not a checkpoint of {', '.join(STUDENTS)}: name one of artifacts/align.")
    student, sam = card.model, load_checkpoint(checkpoint)
    require_teachers_decoder(sam, checkpoint)
    recipe = recipe_of(params, student)
    _, validation = read_material(data, None, [])
    result, installed = ARTIFACTS / "bundle" / student, STUDENTS[student]
    shutil.rmtree(result, ignore_errors=True)
    result.mkdir(parents=True)
    compact({ENCODER + key: value for key, value in sam.image_encoder.state_dict().items()}, result / WEIGHTS)
    contents = Contents(
        kind="checkpoint", model=student, options=card.options, precision="fp32", load={"decoder": MODEL}
    )
    parents = {"teacher": Card.read(TEACHERS[MODEL]).digest}
    Card.seal(result, contents, parents)
    metrics = held_out(load_checkpoint(result), validation)
    teachers = json.loads((TEACHERS[MODEL] / TRAINING).read_text())["metrics"]
    earlier = json.loads((installed / TRAINING).read_text())["recipes"] if (installed / TRAINING).exists() else []
    description = {
        "model": student,
        "teacher": MODEL,
        "parameters": count_parameters(sam.image_encoder),
        "recipes": [*earlier, recipe],
        "metrics": {name: round(value, 4) for name, value in metrics.items()},
        "retained": {name: round(metrics[name] / teachers[name], 4) for name in RETAINED},
    }
    write_json(result / TRAINING, description)
    Card.seal(result, contents, parents)
    install_files(result, installed)
    return summary(installed, metrics)


def require_teachers_decoder(sam: Sam, checkpoint: Path) -> None:
    """Check that a student's prompt encoder and mask decoder are the bundled teacher's.

    Raises:
        InputError: They are not.
    """
    own, teachers = sam.state_dict(), load_checkpoint(TEACHERS[MODEL]).state_dict()
    changed = [k for k, v in teachers.items() if not k.startswith(ENCODER) and not torch.equal(v, own[k])]
    if changed:
        raise InputError(
            f"{checkpoint} has a prompt encoder or mask decoder of its own ({changed[0]}), but a bundled student has "
            f"that of {MODEL}: train the encoder alone, as preset bundled_students does."
        )


def recipe_of(params: Path, student: str) -> Mapping[str, object]:
    """The sections of params.yaml that made a student.

    Raises:
        InputError: One of them is missing.
    """
    sections, keys = read_params(params), {"distill": f"distill.{student}", "align": f"align.{student}"}
    return {name: find(sections, key, params) for name, key in (keys | {"prepare": "prepare"}).items()}
