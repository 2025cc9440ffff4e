"""An engine's self-check is small, repeats anywhere, and finds an engine that computes something else."""

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from pipeline.__main__ import main
from pipeline.core.artifact import Card, Contents, Refusal
from pipeline.core.errors import GateError, InputError
from pipeline.runtime import load
from pipeline.runtime.self_check import SELF_CHECK, repeat
from pipeline.verify import verify
from tests.build_engine.test_build_engine import checkpoint, dataset, made, onnx_artifact  # noqa: F401 - fixtures

DEFAULTS = {"against": None, "device": None, "threads": 1, "as_json": False}


@pytest.fixture(scope="module")
def engines(made, tmp_path_factory):  # noqa: F811
    """The fp32 engine of a student, sealed, and a second one beside it under the name of another precision."""
    root = tmp_path_factory.mktemp("engines")
    for name in ("fp32", "int8"):
        contents = made(root / name)
        Card.seal(root / name, contents.model_copy(update={"precision": name}), {})
    return root


def spoiled(engines, root, change):
    """A copy of an engine whose self-check expects something else; its card is right."""
    out = root / "spoiled"
    out.mkdir()
    for path in (engines / "fp32").iterdir():
        (out / path.name).write_bytes(path.read_bytes())
    with safe_open(out / SELF_CHECK, "pt") as stream:
        tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
    save_file(change(tensors), out / SELF_CHECK)
    card = Card.read(out)
    Card.seal(out, Contents(**card.model_dump(exclude={"digest", "parents"})), card.parents)
    return out


def test_an_engine_carries_a_self_check_of_at_most_1_mb_that_it_passes(engines):
    path = engines / "fp32" / SELF_CHECK
    assert path.stat().st_size <= 1_000_000
    agreement = repeat(load(engines / "fp32"), engines / "fp32")
    assert agreement.passes
    assert (agreement.images, agreement.boxes > 1) == (2, True)
    assert agreement.embedding_cosine > 0.9999
    assert agreement.mask_iou > 0.99
    metrics = json.loads((engines / "fp32/metrics.json").read_text())
    assert metrics["self_check_cosine"] > 0.9999
    deployed = sum(path.stat().st_size for path in (engines / "fp32").iterdir() if path.suffix in (".xml", ".bin"))
    assert metrics["size_mib"] == pytest.approx(deployed / 2**20)


def test_verify_says_what_it_ran_on_and_how_fast(engines, capsys):
    assert main(["verify", str(engines / "int8"), "--threads", "1"]) == 0
    text = capsys.readouterr().out
    for word in ("processor", "torch", "openvino", "cosine 1.0", "IoU", "fp32", "passes"):
        assert word in text
    assert ("times as fast" in text) != ("upper bounds: the machine was busy" in text)
    assert main(["verify", str(engines / "fp32"), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["passes"] is True
    assert report["encoder_ms"] > 0
    assert "fp32_encoder_ms" not in report
    assert report["versions"]["torch"] == torch.__version__.partition("+")[0]


@pytest.mark.parametrize(
    "change",
    [
        lambda tensors: tensors | {"0.embedding": -tensors["0.embedding"]},
        lambda tensors: tensors | {"0.masks": ~tensors["0.masks"], "1.masks": ~tensors["1.masks"]},
        lambda tensors: tensors | {"1.embedding": tensors["1.embedding"] * float("nan")},
    ],
    ids=["embedding", "masks", "not a number"],
)
def test_an_engine_that_gives_something_else_is_found(engines, tmp_path, capsys, change):
    out = spoiled(engines, tmp_path, change)
    with pytest.raises(GateError, match="misses its gate on this machine"):
        verify(directory=out, **DEFAULTS)
    assert "MISSES THE GATE" in capsys.readouterr().out
    assert main(["verify", str(out), "--json"]) == 1
    assert json.loads(capsys.readouterr().out)["passes"] is False


def test_a_missing_a_cut_or_a_foreign_check_is_told(engines, tmp_path):
    for name, content in (("missing", None), ("cut", b"\x08")):
        out = tmp_path / name
        out.mkdir()
        for path in (engines / "fp32").iterdir():
            (out / path.name).write_bytes(path.read_bytes())
        if content is None:
            (out / SELF_CHECK).unlink()
        else:
            (out / SELF_CHECK).write_bytes(content)
        with pytest.raises(InputError, match="is damaged"):
            verify(directory=out, **DEFAULTS)
        with pytest.raises(InputError, match="does not exist|is a damaged safetensors file"):
            repeat(load(engines / "fp32"), out)


@pytest.mark.parametrize(
    "change",
    [
        {"0.token": torch.tensor([9])},
        {"0.cells": torch.tensor(3)},
        {"0.masks": torch.zeros(1)},
        {"0.embedding": torch.zeros(2, 2).half()},
        {"gate": torch.zeros(3)},
        {"7.image": torch.zeros(1)},
    ],
    ids=str,
)
def test_a_check_of_other_types_or_shapes_is_refused(engines, tmp_path, change):
    out = spoiled(engines, tmp_path, lambda tensors: tensors | change)
    with pytest.raises(InputError, match="does not hold cases of a self-check: rebuild the engine"):
        repeat(load(engines / "fp32"), out)


def test_only_engines_are_verified_and_only_beside_their_own_fp32(engines, checkpoint, tmp_path):  # noqa: F811
    with pytest.raises(InputError, match="is an artifact of kind 'checkpoint', not an engine"):
        verify(directory=checkpoint, **DEFAULTS)
    with pytest.raises(InputError, match="is not the fp32 engine of efficientvit_sam_nano"):
        verify(directory=engines / "int8", **(DEFAULTS | {"against": engines / "int8"}))


@pytest.mark.parametrize("sibling", ["refused", "another model's"])
def test_a_sibling_that_is_no_fp32_engine_of_the_student_is_not_timed(engines, tmp_path, capsys, sibling):
    shutil.copytree(engines / "int8", tmp_path / "int8")
    (tmp_path / "fp32").mkdir()
    refusal = Refusal(stage="build_engine", rule="build_engine.min_cosine", value=0.5, limit=0.9, reason="too far")
    contents = Contents(kind="engine", model="another", precision="fp32")
    if sibling == "refused":
        contents = Contents(kind="refusal", model="efficientvit_sam_nano", precision="fp32", refusal=refusal)
    Card.seal(tmp_path / "fp32", contents, {})
    assert main(["verify", str(tmp_path / "int8"), "--json"]) == 0
    assert "fp32_encoder_ms" not in json.loads(capsys.readouterr().out)
    if sibling == "refused":
        with pytest.raises(InputError, match=r"build_engine refused it by build_engine.min_cosine: 0.5"):
            verify(directory=tmp_path / "fp32", **DEFAULTS)
