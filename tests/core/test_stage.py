import fcntl
import sys
from pathlib import Path
from types import ModuleType

import pytest

from pipeline.core.artifact import Card, Contents, digest
from pipeline.core.config import Config
from pipeline.core.dvc_files import complete_part, dvc_yaml, has_cached_result, repair_lock
from pipeline.core.errors import InputError, Refused
from pipeline.core.log import Log, silent
from pipeline.core.stage import DRAFTS, Stage, listed


class MakeConfig(Config):
    text: str


def make(config: MakeConfig, *, out: Path, log: Log) -> Contents:
    (out / "text").write_text(config.text)
    if config.text == "wrong":
        raise InputError("it is wrong")
    if config.text == "stop":
        raise KeyboardInterrupt
    if config.text.startswith("worse"):
        raise Refused("make.min_length", f"{config.text} is no good", value=float("nan"), limit=3.0)
    return Contents(kind="dataset", scratch=(Path("state.pt"), Path("state")))


def use(config: MakeConfig, *, make: Path, student: str, out: Path, log: Log) -> Contents:
    (out / "text").write_text((make / "text").read_text() + student)
    return Contents(kind="checkpoint", model=student)


def join(config: MakeConfig, *, use: Path, out: Path, log: Log) -> Contents:
    kinds = [f"{path.name} {Card.read(path).kind}" for path in sorted(use.iterdir())]
    (out / "text").write_text(", ".join(kinds))
    return Contents(kind="comparison")


MAKE = Stage(run="verbs_of_this_test:make", summary="Make")
USE = Stage(run="verbs_of_this_test:use", summary="Use", deps=(MAKE,), matrix=("student",), section="use.{student}")
JOIN = Stage(run="verbs_of_this_test:join", summary="Join", deps=(USE,), cached=False)
PARAMS = {
    "students": ["a", "b"],
    "make": {"text": "x"},
    "use": {"a": {"text": "y"}, "b": {"text": "z"}},
    "join": {"text": ""},
}


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    module = ModuleType("verbs_of_this_test")
    module.make, module.use, module.join = make, use, join
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.chdir(tmp_path)


def run(stage, keys=None, **text):
    keys = keys or {}
    config = MakeConfig(**text) if text else stage.config(PARAMS, keys)
    return stage(config, keys, silent)


def test_the_card_says_what_an_artifact_was_made_from():
    made, used = run(MAKE), run(USE, {"student": "a"})
    assert used.parents == {"make": made.digest}
    assert Card.read(Path("artifacts/use/a")) == used
    assert Path("artifacts/use/a/text").read_text() == "xa"


def test_the_parents_of_a_stage_over_fewer_keys_are_all_repetitions():
    run(MAKE)
    cards = {f"use/{s}": run(USE, {"student": s}).digest for s in "ab"}
    assert JOIN.parents({}) == cards


@pytest.mark.parametrize(("text", "error"), [("wrong", InputError), ("stop", KeyboardInterrupt)])
def test_a_stage_that_ends_badly_leaves_the_earlier_artifact_and_no_draft(text, error):
    earlier = run(MAKE)
    with pytest.raises(error):
        run(MAKE, text=text)
    assert Card.read(Path("artifacts/make")) == earlier
    assert Path("artifacts/make/text").read_text() == "x"
    assert [path.name for path in DRAFTS.iterdir()] == ["make.lock"]


def test_a_stage_that_ends_well_replaces_the_earlier_artifact():
    run(MAKE)
    run(MAKE, text="new")
    assert Path("artifacts/make/text").read_text() == "new"
    assert [path.name for path in DRAFTS.iterdir()] == ["make.lock"]


def test_a_candidate_that_misses_a_gate_leaves_a_refusal_in_place_of_what_it_wrote():
    run(MAKE)
    card = run(MAKE, text="worse")
    out = Path("artifacts/make")
    assert Card.read(out) == card
    assert (card.kind, card.refusal.stage, card.refusal.rule) == ("refusal", "make", "make.min_length")
    assert (card.refusal.value, card.refusal.limit, card.refusal.reason) == (None, 3.0, "worse is no good")
    assert sorted(path.name for path in out.iterdir()) == ["card.json", "refusal.json"]
    assert digest(out) == card.digest != run(MAKE, text="worse still").digest
    assert [path.name for path in DRAFTS.iterdir()] == ["make.lock"]


def test_a_stage_that_reads_a_refusal_passes_it_on_uncalled():
    refused = run(MAKE, text="worse")
    config = USE.config(PARAMS, {"student": "a"})
    passed = USE(config, {"student": "a"}, silent)
    assert passed.refusal == refused.refusal
    assert (passed.kind, passed.model, passed.precision) == ("refusal", "a", None)
    assert passed.parents == {"make": refused.digest}
    assert not Path("artifacts/use/a/text").exists()
    USE.follow(config, {"student": "a"}, silent)  # the verb would not find what it reads


def test_a_stage_that_reads_all_repetitions_is_called_though_some_are_refused():
    run(MAKE)
    run(USE, {"student": "a"})
    run(MAKE, text="worse")
    run(USE, {"student": "b"})
    card = run(JOIN)
    assert (card.kind, Path("artifacts/join/text").read_text()) == ("comparison", "a checkpoint, b refusal")
    assert list(card.parents) == ["use/a", "use/b"]


def test_what_a_run_could_go_on_with_goes_only_when_the_artifact_is_in_its_place(monkeypatch):
    def leave():
        Path("state").mkdir(exist_ok=True)
        for path in (Path("state.pt"), Path("state/part")):
            path.write_text("weights")

    def full(*arguments):
        raise OSError(28, "No space left on device")

    leave()
    with monkeypatch.context() as patch:
        patch.setattr(Card, "seal", full)
        with pytest.raises(OSError, match="No space left"):
            run(MAKE)
    assert Path("state.pt").exists()
    assert Path("state/part").exists()
    run(MAKE)
    assert Card.read(Path("artifacts/make")).scratch == ()
    assert not Path("state.pt").exists()
    assert not Path("state").exists()


def test_under_dvc_what_a_run_could_go_on_with_goes_when_a_later_stage_starts(monkeypatch):
    monkeypatch.setenv("DVC_STAGE", "make")
    for _ in range(2):  # DVC was killed before it cached the artifact, so that the stage runs again
        Path("state.pt").write_text("weights")
        run(MAKE)
        assert Path("state.pt").exists()
    run(USE, {"student": "a"})
    assert not Path("state.pt").exists()
    assert [path.name for path in DRAFTS.iterdir() if path.suffix != ".lock"] == []


def test_a_note_of_scratch_files_that_was_cut_off_is_not_followed(monkeypatch):
    monkeypatch.setenv("DVC_STAGE", "make")
    run(MAKE)
    (DRAFTS / "make.scratch").write_text('["state.p')
    Path("state.pt").write_text("weights")
    run(USE, {"student": "a"})
    assert Path("state.pt").exists()


def test_a_second_writer_is_told_who_the_first_is():
    DRAFTS.mkdir(parents=True)
    with (DRAFTS / "make.lock").open("w") as stream:
        stream.write("4711")
        stream.flush()
        fcntl.flock(stream, fcntl.LOCK_EX)
        with pytest.raises(InputError, match="already being made by process 4711"):
            run(MAKE)
    run(MAKE)


def test_an_input_that_is_not_there_is_named():
    with pytest.raises(InputError, match=r"artifacts/make is not an artifact"):
        run(USE, {"student": "a"})


def test_a_student_that_params_do_not_list_is_refused():
    with pytest.raises(InputError, match=r"unknown student 'c'.*lists a, b"):
        USE.config(PARAMS, {"student": "c"})


@pytest.mark.parametrize("students", [None, [], "a", [1], ["a", "a"]])
def test_students_must_be_a_list_of_different_names(students):
    with pytest.raises(InputError, match="students"):
        listed({"students": students}, "students")


def test_dvc_yaml_has_repetitions_dependencies_and_the_one_metrics_file():
    text = dvc_yaml((MAKE, USE, JOIN))
    for line in (
        "cmd: exec python -m pipeline use --student ${item.student}",
        "- artifacts/use/${item.student}",
        "- use.${item.student}",
        "student: ${students}",
        "cache: false",
        "- artifacts/join/metrics.json",
    ):
        assert line in text


def test_only_what_dvc_lock_holds_can_be_brought_back():
    assert not has_cached_result("make")
    Path("dvc.lock").write_text("stages: {make: {outs: [{path: artifacts/make, md5: 1.dir}]}, use@a: {cmd: x}}")
    assert has_cached_result("make")
    assert not has_cached_result("use@a")


ENTRIES = [f"  {name}:\n    cmd: python\n    outs:\n    - path: {name}\n      md5: 0.dir\n" for name in ("make", "use")]
WHOLE = "schema: '2.0'\nstages:\n" + "".join(ENTRIES)


def test_a_lock_file_that_was_cut_off_anywhere_keeps_its_complete_entries():
    assert complete_part(WHOLE) == WHOLE
    assert complete_part("") == ""
    first = len(WHOLE) - len(ENTRIES[1])
    for length in range(1, len(WHOLE)):
        text = WHOLE[:length]
        expected = {text} if text.endswith("\n") else set()
        assert complete_part(text) in expected | {"" if length < first + 3 else WHOLE[:first]}


@pytest.mark.parametrize("text", ["<<<<<<< HEAD\nschema: '2.0'\n=======\n: : [\n", "[" * 3000, "hello"])
def test_a_lock_file_that_is_broken_otherwise_has_no_complete_part(text):
    assert complete_part(text) is None


def test_a_lock_file_that_was_cut_off_is_repaired_and_said(capsys):
    Path(".dvc").mkdir()
    Path("dvc.lock").write_text(WHOLE[:-3])
    repair_lock()
    assert Path("dvc.lock").read_text() == WHOLE[: -len(ENTRIES[1])]
    assert "dvc.lock was cut off when its writer was killed" in capsys.readouterr().err
    repair_lock()
    assert capsys.readouterr().err == ""
