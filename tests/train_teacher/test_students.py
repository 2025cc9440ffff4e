import json

import pytest
import torch

from pipeline.core.artifact import CARD, Card, Contents
from pipeline.core.bundled import STUDENTS, TEACHERS
from pipeline.core.errors import InputError
from pipeline.distill import student_of
from pipeline.models import build
from pipeline.models.sam import WEIGHTS, save_checkpoint
from pipeline.models.students import copy_decoder, load_checkpoint
from pipeline.train_teacher import students
from pipeline.train_teacher.validation import Subject

OPTIONS = {"teacher": "bundled_v2"}
ENCODER = "image_encoder."


def checkpoint(folder, *, own_decoder=False):
    """A checkpoint of a student with fresh weights and the bundled teacher's decoder."""
    folder.mkdir()
    sam = build("tinysam_nano", OPTIONS, seed=4)
    if not own_decoder:
        copy_decoder(load_checkpoint(TEACHERS["bundled_v2"]), sam)
    save_checkpoint(sam, folder)
    Card.seal(folder, Contents(kind="checkpoint", model="tinysam_nano", options=OPTIONS, precision="fp32"), {})
    return sam


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    """`students.bundle` into a temporary folder, measured on no image."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(students, "STUDENTS", {"tinysam_nano": tmp_path / "installed"})
    monkeypatch.setattr(students, "read_material", lambda *_: (None, list[Subject]()))
    monkeypatch.setattr(students, "held_out", lambda *_: dict.fromkeys(students.RETAINED, 0.5))
    params = tmp_path / "params.yaml"
    params.write_text(
        "prepare: {data: x}\ndistill: {tinysam_nano: {batch: 4}}\nalign: {tinysam_nano: {train: encoder}}\n"
    )
    return lambda source: students.bundle(source, tmp_path, params)


@torch.inference_mode()
def test_a_bundled_student_is_its_encoder_with_the_teachers_decoder(tmp_path, bundle):
    sam = checkpoint(tmp_path / "student")
    bundle(tmp_path / "student")
    installed = tmp_path / "installed"
    assert Card.verified(installed).parents == {"teacher": Card.read(TEACHERS["bundled_v2"]).digest}
    assert (installed / WEIGHTS).stat().st_size <= 6e6
    read, teachers = load_checkpoint(installed).state_dict(), load_checkpoint(TEACHERS["bundled_v2"]).state_dict()
    for key, value in sam.state_dict().items():
        own = (
            value.half().float() if key.startswith(ENCODER) and value.is_floating_point() else teachers.get(key, value)
        )
        assert torch.equal(read[key], own)


def test_recipes_of_successive_trainings_are_all_recorded(tmp_path, bundle):
    checkpoint(tmp_path / "student")
    bundle(tmp_path / "student")
    bundle(tmp_path / "student")
    description = json.loads((tmp_path / "installed" / "training.json").read_text())
    assert [recipe["distill"] for recipe in description["recipes"]] == [{"batch": 4}] * 2
    assert description["retained"].keys() == set(students.RETAINED)


def test_a_student_with_its_own_decoder_is_refused_and_the_bundled_one_is_kept(tmp_path, bundle):
    checkpoint(tmp_path / "student", own_decoder=True)
    with pytest.raises(InputError, match="mask decoder of its own"):
        bundle(tmp_path / "student")
    assert not (tmp_path / "installed").exists()


@pytest.mark.parametrize("name", STUDENTS)
def test_bundled_students_are_of_today_s_teacher(name):
    card = Card.verified(STUDENTS[name])
    assert card.parents == {"teacher": Card.read(TEACHERS["bundled_v2"]).digest}
    assert (STUDENTS[name] / WEIGHTS).stat().st_size <= 6e6
    assert (STUDENTS[name] / CARD).is_file()


def test_distillation_starts_from_the_bundled_encoder_and_the_teachers_decoder():
    teacher = TEACHERS["bundled_v2"]
    own = student_of(teacher, "tinysam_nano", 0, OPTIONS, "bundled").state_dict()
    expected = load_checkpoint(STUDENTS["tinysam_nano"]).state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in own.items())


def test_a_student_for_another_teacher_cannot_start_from_the_bundled_one(tmp_path):
    save_checkpoint(build("bundled"), tmp_path)
    Card.seal(tmp_path, Contents(kind="checkpoint", model="bundled", precision="fp32"), {})
    with pytest.raises(InputError, match="options.teacher to bundled_v2"):
        student_of(tmp_path, "tinysam_nano", 0, {}, "bundled")
