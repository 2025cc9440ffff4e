"""Engines are built the same each time, and only those that mean what the ONNX files mean are kept."""

import pytest
import torch

from pipeline.artifact import METRICS, Card, Contents
from pipeline.build_engine import ENGINES, BuildEngineConfig, build_engine
from pipeline.build_engine.check import check, picture
from pipeline.errors import InputError
from pipeline.log import silent
from pipeline.models import build
from pipeline.quantize.export import export_decoder, export_encoder
from pipeline.runtime import ENGINES as RUNTIMES
from pipeline.runtime import load

STUDENT = "efficientvit_sam_nano"
CONFIG = BuildEngineConfig(
    engine="openvino", inference_precision="f32", threads=1, min_cosine=0.9999, min_mask_agreement=0.99
)


@pytest.fixture(scope="module")
def onnx_artifact(tmp_path_factory):
    place = tmp_path_factory.mktemp("onnx")
    sam = build(STUDENT)
    export_encoder(sam, place / "encoder.onnx", opset=18, tolerance=1e-3)
    export_decoder(sam, place / "decoder.onnx", opset=18, tolerance=1e-3)
    sizes = {"image_size": 256, "input_size": 256, "embedding_size": 16}
    options = {"carried": [1, 2]}
    Card.seal(place, Contents(kind="onnx", model=STUDENT, options=options, precision="fp32", load=sizes), {})
    return place


def made(onnx_artifact, out, **changes):
    out.mkdir()
    arguments = {"quantize": onnx_artifact, "student": STUDENT, "precision": "fp32", "out": out, "log": silent}
    return build_engine(CONFIG.model_copy(update=changes), **arguments)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_is_the_same_bytes_each_time_and_runs(onnx_artifact, tmp_path, engine):
    contents = made(onnx_artifact, tmp_path / "a", engine=engine)
    made(onnx_artifact, tmp_path / "b", engine=engine)
    files = sorted(p.name for p in (tmp_path / "a").iterdir())
    assert files == sorted(p.name for p in (tmp_path / "b").iterdir())
    for name in files:
        data = (tmp_path / "a" / name).read_bytes()
        assert data == (tmp_path / "b" / name).read_bytes(), name
        assert str(onnx_artifact).encode() not in data
        assert str(tmp_path).encode() not in data
    assert METRICS in files
    assert contents.load["engine"] == engine
    assert contents.options == Card.read(onnx_artifact).options != {}
    Card.seal(tmp_path / "a", contents, {})
    assert load(tmp_path / "a").encode(torch.zeros(2, 3, 256, 256)).shape == (2, 256, 16, 16)


def test_every_engine_that_is_built_can_be_run():
    assert set(ENGINES) == set(RUNTIMES)


def test_the_checked_picture_does_not_change():
    assert (picture(64) == picture(64)).all()
    assert len({tuple(pixel) for pixel in picture(64).reshape(-1, 3)}) > 100


class Broken:
    """A segmenter that is another one, spoilt."""

    def __init__(self, inner, spoil_embedding=None, spoil_logits=None):
        self._inner, self._embedding, self._logits = inner, spoil_embedding, spoil_logits
        self.image_size, self.input_size, self.embedding_size = 256, 256, 16

    def encode(self, images):
        embedding = self._inner.encode(images)
        return self._embedding(embedding) if self._embedding else embedding

    def decode(self, *arguments):
        logits, ious = self._inner.decode(*arguments)
        return (self._logits(logits) if self._logits else logits), ious


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        ({"spoil_embedding": lambda e: e + 5}, "embedding_cosine is"),
        ({"spoil_embedding": lambda e: e * float("nan")}, "not finite in embedding"),
        ({"spoil_logits": lambda m: m / 0}, "not finite in low_res_logits"),
        ({"spoil_logits": lambda m: m.abs() * -1 - 1}, "empty masks only"),
        ({"spoil_logits": lambda m: -m}, "mask_agreement is"),
    ],
)
def test_an_engine_that_means_something_else_fails_with_figures(onnx_artifact, tmp_path, spoil, says):
    reference = load(onnx_artifact)
    assert check(CONFIG, Broken(reference), reference)["mask_agreement"] == 1
    with pytest.raises(InputError, match=says):
        check(CONFIG, Broken(reference, **spoil), reference)


def test_an_unknown_engine_lists_the_known_ones(onnx_artifact, tmp_path):
    with pytest.raises(InputError, match="unknown build_engine.engine 'abacus': there is openvino, onnxruntime"):
        made(onnx_artifact, tmp_path / "out", engine="abacus")


def test_another_models_files_are_refused(onnx_artifact, tmp_path):
    arguments = {"quantize": onnx_artifact, "student": STUDENT, "precision": "int8", "out": tmp_path, "log": silent}
    with pytest.raises(InputError, match="not onnx efficientvit_sam_nano int8"):
        build_engine(CONFIG, **arguments)


def test_bf16_is_refused_where_there_is_none(onnx_artifact, tmp_path):
    with pytest.raises(InputError, match="set that, or engine 'openvino'"):
        made(onnx_artifact, tmp_path / "out", engine="onnxruntime", inference_precision="bf16")


def test_a_damaged_file_is_named(onnx_artifact, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("encoder.onnx", "card.json"):
        (broken / name).write_bytes((onnx_artifact / name).read_bytes())
    (broken / "decoder.onnx").write_bytes(b"no model")
    with pytest.raises(InputError, match=r"decoder.onnx"):
        made(broken, tmp_path / "out")
