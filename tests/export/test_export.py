"""A student as ONNX files: what they hold, and what is refused."""

import json
import shutil

import onnx
import pytest
import torch

from pipeline.core.artifact import Card
from pipeline.core.errors import InputError, Refused
from pipeline.core.log import silent
from pipeline.export import ExportConfig, export, export_encoder
from pipeline.export import sam as sam_module
from pipeline.models import build
from pipeline.models.sam import save_checkpoint
from tests.quantize.test_quantize import small  # noqa: F401 - a fixture

CONFIG = ExportConfig(opset=18, max_difference=1e-3)


@pytest.fixture(scope="module")
def places(exported):
    """The verb run once on the nano student."""
    return exported("efficientvit_sam_nano")


def test_the_verb_leaves_two_models_and_their_figures(places):
    exported = places["onnx"]
    names = ["card.json", "decoder.onnx", "encoder.onnx", "metrics.json"]
    assert sorted(path.name for path in exported.iterdir()) == names
    card = Card.read(exported)
    assert (card.kind, card.model, card.precision) == ("onnx", "efficientvit_sam_nano", "fp32")
    assert card.load == {"image_size": 256, "input_size": 256, "embedding_size": 16}
    figures = json.loads((exported / "metrics.json").read_text())
    for part in ("encoder", "decoder"):
        assert 0 < figures[f"{part}_max_difference"] < 1e-3
        assert figures[f"{part}_nodes"] == len(onnx.load(exported / f"{part}.onnx").graph.node)


def test_no_operator_is_left_that_engines_refuse_and_axes_are_named(places):
    for name, dynamic in (("encoder", {"batch"}), ("decoder", {"masks", "prompts", "points"})):
        model = onnx.load(places["onnx"] / f"{name}.onnx")
        kinds = {node.op_type for node in model.graph.node}
        assert not kinds & {"OneHot", "Tile", "NonZero", "ScatterND", "BatchNormalization", "Loop", "If"}
        assert "LayerNormalization" in kinds
        axes = {d.dim_param for v in (*model.graph.input, *model.graph.output) for d in v.type.tensor_type.shape.dim}
        assert axes - {""} == dynamic
    assert "Sqrt" not in kinds  # channel norms of the decoder are the one operator, too


@pytest.mark.parametrize("name", ["encoder", "decoder"])
def test_a_file_tells_nothing_but_its_computation(places, name):
    data = (places["onnx"] / f"{name}.onnx").read_bytes()
    for word in (b"/work", b"site-packages", b".py", b'File "', b"torch.nn"):
        assert word not in data
    model = onnx.load_from_string(data)
    assert not any(node.metadata_props or node.doc_string for node in model.graph.node)
    assert len({node.name for node in model.graph.node}) == len(model.graph.node)


def test_export_leaves_the_model_as_it_was(small):  # noqa: F811
    keys = set(small.state_dict())
    before = small.prompt_encoder.get_dense_pe()
    copied = sam_module._for_export(small)
    assert torch.equal(copied.prompt_encoder.get_dense_pe(), before)
    assert set(small.state_dict()) == keys
    assert "dense_position" not in dict(small.prompt_encoder.named_buffers())


def test_a_difference_to_pytorch_above_the_limit_fails(small, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setattr(sam_module, "_difference", lambda *_: float("inf"))
    with pytest.raises(Refused, match=r"by inf, more than export.max_difference 0.0001") as caught:
        export_encoder(small, tmp_path / "encoder.onnx", opset=18, tolerance=1e-4)
    assert (caught.value.rule, caught.value.value, caught.value.limit) == ("export.max_difference", None, 1e-4)


def test_a_checkpoint_that_was_overwritten_is_refused(places, tmp_path):
    align = shutil.copytree(places["checkpoint"], tmp_path / "align")
    save_checkpoint(build("efficientvit_sam_nano", seed=7), align)
    with pytest.raises(InputError, match=r"align is damaged: .*dvc checkout"):
        export(CONFIG, align=align, student="efficientvit_sam_nano", out=tmp_path, log=silent)


def test_another_students_checkpoint_is_refused(places, tmp_path):
    align = places["checkpoint"]
    with pytest.raises(InputError, match="not a checkpoint of efficientvit_sam_l0"):
        export(CONFIG, align=align, student="efficientvit_sam_l0", out=tmp_path, log=silent)
