"""Encoders in int8: what they compute, how they are built, what is refused."""

import os
import shutil

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from pipeline.core.errors import InputError, Refused
from pipeline.core.log import silent
from pipeline.data.shards import Sample, Shards
from pipeline.export.rules import LOWERED
from pipeline.export.sam import export_encoder
from pipeline.models import build
from pipeline.models.sam import assemble
from pipeline.ops import masks
from pipeline.quantize import PRECISIONS, QuantizeConfig, SearchConfig, quantize
from pipeline.quantize.calibration import CalibrationData
from pipeline.runtime.onnxruntime import open_session

CONFIG = QuantizeConfig(
    calibration_images=3,
    holdout_images=2,
    seed=0,
    method="onnxruntime",
    calibration="max",
    percentile=99.99,
    search=SearchConfig(candidates=100, lowest=0.01, highest=1.2, rounds=3, rows=512),
    quantize_attention=False,
    keep=[],
    decoder="fp32",
    sensitivity_images=0,
    min_cosine=0.9,
)


class Pictures(Shards):
    """Coarse noise with two squares in the place of a prepared split."""

    def __init__(self, directory=None, split="calibration", count=5):
        self.directory, self.split, self._count = directory, split, count

    def __len__(self):
        return self._count

    def __getitem__(self, index):
        noise = np.random.default_rng(index).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        annotations = []
        for start in (4, 30):
            mask = np.zeros((64, 64), bool)
            mask[start : start + 24, start : start + 20] = True
            annotations.append({"segmentation": masks.encode(mask)})
        return Sample(str(index), noise.repeat(8, 0).repeat(8, 1), annotations)


class SmallEncoder(nn.Module):
    """Convolutions, a norm, a shortcut, attention and a channel norm, in the shape of an image encoder of 64 pixels."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 32, 4, stride=4), nn.BatchNorm2d(32), nn.GELU(approximate="tanh"))
        self.block = nn.Sequential(nn.Conv2d(32, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.GELU())
        self.lower = nn.Conv2d(32, 64, 4, stride=4)
        self.project, self.widen = nn.Linear(64, 64), nn.Linear(64, 256)
        self.norm = nn.LayerNorm(256)

    def forward(self, x):
        x = self.stem(x)
        tokens = self.lower(x + self.block(x)).flatten(2).transpose(1, 2)
        q = self.project(tokens)
        tokens = tokens + (q @ q.transpose(1, 2)).softmax(-1) @ tokens
        return self.norm(self.widen(tokens)).transpose(1, 2).unflatten(2, (4, 4))


def make_small():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sam = assemble(SmallEncoder(), image_size=64, input_size=64, embedding_size=4)
    for module in sam.image_encoder.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.uniform_(-1, 1, generator=torch.Generator().manual_seed(1))
            module.running_var.uniform_(0.5, 2, generator=torch.Generator().manual_seed(2))
    return sam.eval()


@pytest.fixture(scope="module")
def small():
    return make_small()


@pytest.fixture(scope="module")
def encoder(small, tmp_path_factory):
    path = tmp_path_factory.mktemp("onnx") / "encoder.onnx"
    export_encoder(small, path, opset=18, tolerance=1e-4)
    return path


def lowered(small, encoder, tmp_path, precision="int8", **changes):
    """The encoder in another precision, with its figures."""
    path, config = tmp_path / "encoder.onnx", CONFIG.model_copy(update=changes)
    path.write_bytes(encoder.read_bytes())
    figures = PRECISIONS[precision](config, path, CalibrationData(config, small, Pictures()))
    assert [p.name for p in tmp_path.iterdir()] == ["encoder.onnx"]
    return path, figures


@pytest.fixture(scope="module")
def whole(exported, tmp_path_factory):
    """The verb run once on the nano student in int8."""
    places, out = exported("efficientvit_sam_nano"), tmp_path_factory.mktemp("quantize")
    inputs = {"align": places["checkpoint"], "export": places["onnx"]}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pipeline.quantize.Shards", Pictures)
        contents = quantize(
            CONFIG.model_copy(update={"min_cosine": 0.0}),
            prepare=out,
            **inputs,
            student="efficientvit_sam_nano",
            precision="int8",
            out=out,
            log=silent,
        )
    return inputs, out, contents


def test_the_verb_leaves_two_models_and_their_figures(whole):
    _, out, contents = whole
    assert sorted(p.name for p in out.iterdir()) == ["decoder.onnx", "encoder.onnx", "metrics.json"]
    assert (contents.kind, contents.precision) == ("onnx", "int8")
    assert contents.load == {"image_size": 256, "input_size": 256, "embedding_size": 16, "weight_range": 64}
    # int8 weights are stored as such: about a quarter of fp32's bytes.
    parameters = sum(p.numel() for p in build("efficientvit_sam_nano").image_encoder.parameters())
    assert (out / "encoder.onnx").stat().st_size < 4 * parameters / 2.5


def test_the_same_weights_give_the_same_bytes(small, encoder, tmp_path):
    export_encoder(small, tmp_path / "again.onnx", opset=18, tolerance=1e-4)
    assert (tmp_path / "again.onnx").read_bytes() == encoder.read_bytes()
    (tmp_path / "again.onnx").unlink()
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
    a, b = (lowered(small, encoder, tmp_path / folder)[0].read_bytes() for folder in ("a", "b"))
    assert a == b
    assert a != encoder.read_bytes()


@pytest.mark.parametrize("attention", [True, False])
@pytest.mark.parametrize("calibration", ["max", "entropy", "percentile"])
def test_int8_has_the_form_engines_take(small, encoder, tmp_path, attention, calibration):
    path, figures = lowered(small, encoder, tmp_path, quantize_attention=attention, calibration=calibration)
    model = onnx.load(path)
    constants = {c.name: numpy_helper.to_array(c) for c in model.graph.initializer}
    made = {node.output[0]: node for node in model.graph.node}
    weights = products = 0
    for node in model.graph.node:
        sources = [made[name] for name in node.input if name in made and made[name].op_type == "DequantizeLinear"]
        if node.op_type in LOWERED:
            lowered_weight = any(source.input[0] in constants for source in sources)
            assert lowered_weight or (node.op_type == "MatMul" and (len(sources) == 2) == attention)
            weights, products = weights + lowered_weight, products + (not lowered_weight)
        if node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            zero_point = constants[node.input[2]]
            assert zero_point.dtype == np.int8
            assert not zero_point.any()
            if node.input[0] in constants:
                assert constants[node.input[0]].dtype == np.int8
                assert constants[node.input[1]].size > 1  # one scale per channel
            else:
                assert constants[node.input[1]].size == 1
    assert (weights, products) == (5, 2)
    assert figures["quantized_nodes"] == (7 if attention else 5)
    assert figures["embedding_cosine"] > 0.98


def test_int8_calibrates_on_the_images_asked_for_and_compares_on_others(small):
    data = CalibrationData(CONFIG, small, Pictures())
    assert sorted((*data.chosen, *data.held_out)) == [0, 1, 2, 3, 4]
    assert (len(data.chosen), len(data.held_out)) == (3, 2)
    assert CalibrationData(CONFIG, small, Pictures()).chosen == data.chosen


def test_the_card_tells_how_many_images_which_seed_and_their_digest(small, whole):
    _, _, contents = whole
    assert contents.calibration == CalibrationData(CONFIG, small, Pictures()).card()
    assert (contents.calibration.images, contents.calibration.seed) == (3, 0)
    other = CalibrationData(CONFIG.model_copy(update={"seed": 1}), small, Pictures()).card()
    assert len(other.digest) == 64
    assert other.digest != contents.calibration.digest


@pytest.mark.parametrize("split", ["train", "validation"])
def test_other_splits_than_calibration_are_refused(small, split):
    with pytest.raises(InputError, match=f"'calibration', not on '{split}'"):
        _ = CalibrationData(CONFIG, small, Pictures(split=split)).chosen


def test_too_few_images_are_refused_with_both_numbers(small):
    with pytest.raises(InputError, match=r"has 4 calibration images; .* 3 \+ 2"):
        _ = CalibrationData(CONFIG, small, Pictures(count=4)).held_out


def test_int8_too_far_from_fp32_fails_and_leaves_the_file(small, encoder, tmp_path):
    with pytest.raises(Refused, match="below quantize.min_cosine 1.0") as caught:
        lowered(small, encoder, tmp_path, min_cosine=1.0)
    assert (caught.value.rule, caught.value.limit) == ("quantize.min_cosine", 1.0)
    assert 0.9 < caught.value.value < 1
    assert (tmp_path / "encoder.onnx").read_bytes() == encoder.read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["encoder.onnx"]


def test_an_unknown_precision_lists_the_known_ones(whole, tmp_path):
    with pytest.raises(InputError, match=f"unknown precision 'int3': there is {', '.join(PRECISIONS)}"):
        quantize(CONFIG, prepare=tmp_path, **whole[0], student="x", precision="int3", out=tmp_path, log=silent)


def test_int8_encoder_takes_any_batch(whole):
    session = open_session(whole[1] / "encoder.onnx")
    images = np.random.default_rng(0).normal(size=(3, 3, 256, 256)).astype(np.float32)
    (together,) = session.run(None, {"image": images})
    (alone,) = session.run(None, {"image": images[1:2]})
    assert np.abs(together[1:2] - alone).max() < 1e-4


def test_another_students_files_are_refused(whole, tmp_path):
    with pytest.raises(InputError, match="not onnx efficientvit_sam_l0 fp32"):
        quantize(
            CONFIG, prepare=tmp_path, **whole[0], student="efficientvit_sam_l0", precision="fp32", out=tmp_path,
            log=silent,
        )  # fmt: skip


def test_fp32_is_the_exported_files_as_they_are_and_reads_no_image(whole, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.quantize.Shards", lambda *_: Pictures(count=0))
    names = {"student": "efficientvit_sam_nano", "precision": "fp32"}
    contents = quantize(CONFIG, prepare=tmp_path, **whole[0], **names, out=tmp_path, log=silent)
    assert contents.calibration is None
    for name in ("encoder.onnx", "decoder.onnx"):
        assert (tmp_path / name).read_bytes() == (whole[0]["export"] / name).read_bytes()


def test_an_onnx_file_that_was_cut_is_refused(whole, tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.quantize.Shards", lambda *_: Pictures(count=0))
    export = shutil.copytree(whole[0]["export"], tmp_path / "export")
    os.truncate(export / "encoder.onnx", 1000)
    needs = {"prepare": tmp_path, "align": whole[0]["align"], "export": export}
    with pytest.raises(InputError, match=r"export is damaged: .*dvc checkout"):
        quantize(CONFIG, **needs, student="efficientvit_sam_nano", precision="fp32", out=tmp_path, log=silent)
