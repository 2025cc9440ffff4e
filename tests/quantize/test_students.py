"""What every family keeps to when it becomes files: its function, plain operators, and the precision asked for."""

import shutil

import numpy as np
import onnx
import openvino
import pytest
import torch

from pipeline.core.artifact import Card
from pipeline.data.shards import Shards
from pipeline.export.rules import FORBIDDEN, LOWERED
from pipeline.models import STUDENTS
from pipeline.models.students import load_checkpoint
from pipeline.quantize import QuantizeConfig, SearchConfig
from pipeline.quantize.calibration import CalibrationData
from pipeline.quantize.int8 import int8
from pipeline.quantize.layers import products
from pipeline.runtime import load
from pipeline.runtime.onnxruntime import open_session

NANOS = [name for name in STUDENTS if name.endswith("_nano")]
OPTIONS = {"sam_lightening_nano": {"attention": [[[128, 2]], [[100, 2]], [[128, 2], [256, 1]], [[64, 1]]]}}
"""Where a family has them, others than its own: with the wrong ones a file would hold another function."""
CONFIG = QuantizeConfig(
    calibration_images=3, holdout_images=2, seed=0, method="onnxruntime",
    calibration="max", percentile=99.99,
    search=SearchConfig(candidates=100, lowest=0.01, highest=1.2, rounds=3, rows=512),
    quantize_attention=False, keep=[], decoder="fp32",
    sensitivity_images=0, min_cosine=0.95,
)  # fmt: skip


class Pictures(Shards):
    """Coarse noise in the place of a prepared split."""

    def __init__(self, directory, split):
        self.directory, self.split = directory, split

    def __len__(self):
        return 5

    def __getitem__(self, index):
        noise = np.random.default_rng(index).integers(0, 256, (8, 8, 3), dtype=np.uint8)
        return type("Sample", (), {"image": noise.repeat(8, 0).repeat(8, 1)})()


@pytest.fixture(scope="module", params=NANOS)
def artifacts(request, exported, tmp_path_factory):
    """A checkpoint of each family, its ONNX artifact, and its encoder in int8."""
    student = request.param
    places = exported(student, OPTIONS.get(student, {})) | {"int8": tmp_path_factory.mktemp(student)}
    lowered = places["int8"] / "encoder.onnx"
    shutil.copyfile(places["onnx"] / "encoder.onnx", lowered)
    pictures = Pictures(places["int8"], "calibration")
    int8(CONFIG, lowered, CalibrationData(CONFIG, load_checkpoint(places["checkpoint"]), pictures))
    return places


def images(batch):
    return torch.randn(batch, 3, 256, 256, generator=torch.Generator().manual_seed(0))


def cosine(a, b):
    return float(torch.nn.functional.cosine_similarity(torch.as_tensor(a).flatten(), b.flatten(), dim=0))


def test_engines_give_pytorchs_embedding_for_any_batch(artifacts):
    encoder = load_checkpoint(artifacts["checkpoint"]).image_encoder
    path = artifacts["onnx"] / "encoder.onnx"
    session = open_session(path)
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for batch in (1, 3):
        with torch.inference_mode():
            expected = encoder(images(batch))
        assert expected.std() > 0.1
        assert np.abs(session.run(None, {"image": images(batch).numpy()})[0] - expected.numpy()).max() < 1e-3
        assert np.abs(compiled(images(batch).numpy())[0] - expected.numpy()).max() < 1e-3


def test_the_encoder_is_made_of_plain_operators(artifacts):
    model = onnx.load(artifacts["onnx"] / "encoder.onnx")
    kinds = {node.op_type for node in model.graph.node}
    assert not kinds & (FORBIDDEN | {"GatherND", "Where", "Einsum", "Sqrt"})
    assert "LayerNormalization" in kinds


def test_all_products_with_weights_become_int8_and_the_embedding_stays(artifacts):
    model, lowered = (onnx.load(artifacts[precision] / "encoder.onnx") for precision in ("onnx", "int8"))
    with_weights = sum(node.op_type in LOWERED for node in model.graph.node) - len(products(model))
    weights = {c.name: c for c in lowered.graph.initializer if len(c.dims) >= 2}
    assert with_weights > 10
    assert len(weights) >= with_weights
    floats = {name for name, c in weights.items() if c.data_type != onnx.TensorProto.INT8}
    readers = {node.op_type for node in lowered.graph.node if floats & set(node.input)}
    assert not readers & set(LOWERED)
    with torch.inference_mode():
        expected = load_checkpoint(artifacts["checkpoint"]).image_encoder(images(1))
    for found in (
        open_session(artifacts["int8"] / "encoder.onnx").run(None, {"image": images(1).numpy()})[0],
        openvino.Core().compile_model(artifacts["int8"] / "encoder.onnx", "CPU")(images(1).numpy())[0],
    ):
        assert cosine(found, expected) > 0.95


def test_int8_is_what_the_file_means_in_every_runtime_on_every_calibration_image(artifacts):
    data = CalibrationData(CONFIG, load_checkpoint(artifacts["checkpoint"]), Pictures(None, "calibration"))
    path = artifacts["int8"] / "encoder.onnx"
    meant, session = open_session(path, simulate=True), open_session(path)
    compiled = openvino.Core().compile_model(path, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    for index in data.chosen:
        expected = torch.from_numpy(meant.run(None, data.feeds(index))[0])
        for found in (session.run(None, data.feeds(index))[0], compiled(data.feeds(index))[0]):
            assert cosine(found, expected) >= 0.995


def test_the_options_of_a_student_are_on_the_card_of_its_files(artifacts):
    checkpoint, files = (Card.read(artifacts[name]) for name in ("checkpoint", "onnx"))
    assert files.options == checkpoint.options == OPTIONS.get(files.model, {})
    with torch.inference_mode():
        expected = load_checkpoint(artifacts["checkpoint"]).image_encoder(images(1))
    assert (load(artifacts["onnx"]).encode(images(1)) - expected).abs().max() < 1e-3
