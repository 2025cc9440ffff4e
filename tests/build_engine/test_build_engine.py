"""Engines are built the same each time, and only those that mean what the ONNX files mean are kept."""

import shutil

import onnx
import pytest
import torch
from onnxruntime.transformers.float16 import convert_float_to_float16

from pipeline.bench.engines import scenes
from pipeline.build_engine import ENGINES, BuildEngineConfig, build_engine
from pipeline.build_engine.check import check
from pipeline.core.artifact import METRICS, Card, Contents
from pipeline.core.errors import InputError, Refused
from pipeline.core.log import silent
from pipeline.data.shards import Sample, Shards
from pipeline.export.sam import export_encoder
from pipeline.models.sam import save_checkpoint
from pipeline.models.students import load_checkpoint
from pipeline.runtime import ENGINES as RUNTIMES
from pipeline.runtime import load

STUDENT = "efficientvit_sam_nano"
SIZES = {"image_size": 256, "input_size": 256, "embedding_size": 16}
CONFIG = BuildEngineConfig(
    engine="openvino",
    inference_precision="f32",
    threads=1,
    images=2,
    min_cosine=0.9999,
    min_mask_agreement=0.99,
    tensorrt=None,
)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    place = tmp_path_factory.mktemp("dataset")
    scenes(place, "calibration", 2, 96)
    return place


@pytest.fixture(scope="module")
def checkpoint(exported):
    return exported(STUDENT)["checkpoint"]


@pytest.fixture(scope="module")
def onnx_artifact(exported, tmp_path_factory):
    place = shutil.copytree(exported(STUDENT)["onnx"], tmp_path_factory.mktemp("build_engine") / "onnx")
    options = {"carried": [1, 2]}
    Card.seal(place, Contents(kind="onnx", model=STUDENT, options=options, precision="fp32", load=SIZES), {})
    return place


@pytest.fixture(scope="module")
def made(dataset, checkpoint, onnx_artifact):
    def make(out, source=onnx_artifact, precision="fp32", **changes):
        out.mkdir()
        needs = {"prepare": dataset, "align": checkpoint, "quantize": source}
        names = {"student": STUDENT, "precision": precision}
        return build_engine(CONFIG.model_copy(update=changes), **needs, **names, out=out, log=silent)

    return make


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_an_engine_is_the_same_bytes_each_time_and_runs(made, onnx_artifact, tmp_path, engine):
    contents = made(tmp_path / "a", engine=engine)
    made(tmp_path / "b", engine=engine)
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


@pytest.fixture(scope="module")
def samples(dataset):
    return list(Shards(dataset, "calibration"))


@pytest.mark.parametrize(
    ("spoil", "says", "rule", "limit"),
    [
        (
            {"spoil_embedding": lambda e: e + 5},
            r"embedding_cosine is .*\.min_cosine asks for 0\.9999",
            "min_cosine",
            0.9999,
        ),
        (
            {"spoil_embedding": lambda e: e * float("nan")},
            r"not finite in image_embedding\. In ONNX Runtime no tensor",
            "finite",
            None,
        ),
        ({"spoil_logits": lambda m: m / 0}, "not finite in low_res_logits", "finite", None),
        (
            {"spoil_logits": lambda m: m.abs() * -1 - 1},
            "empty mask for [0-9]+ of [0-9]+ boxes",
            "vanished_masks",
            0.0,
        ),
        ({"spoil_logits": lambda m: m.roll(9, -1)}, "mask_agreement is", "min_mask_agreement", 0.99),
    ],
)
def test_an_engine_that_means_something_else_is_refused_with_figures(
    checkpoint, onnx_artifact, samples, spoil, says, rule, limit
):
    reference = load(checkpoint, threads=1)
    figures = check(CONFIG, Broken(reference), reference, samples, onnx_artifact)
    assert figures["mask_agreement"] == 1
    assert figures["prompts"] == sum(min(16, len(sample.annotations)) for sample in samples) > 0
    with pytest.raises(Refused, match=says) as caught:
        check(CONFIG, Broken(reference, **spoil), reference, samples, onnx_artifact)
    refused = caught.value
    assert (refused.rule, refused.limit) == (f"build_engine.{rule}", limit)
    assert (refused.value is None) == (limit is None)


def test_images_without_instances_compare_nothing(checkpoint, onnx_artifact, samples):
    reference = load(checkpoint, threads=1)
    empty = [Sample(key="a", image=samples[0].image, annotations=[])]
    with pytest.raises(InputError, match="no calibration image that was compared has an instance"):
        check(CONFIG, reference, reference, empty, onnx_artifact)


def test_an_overflow_in_fp16_is_caught_and_its_place_is_named(dataset, checkpoint, onnx_artifact, tmp_path):
    # The last convolution before the encoder's LayerNorm a million times as strong: the norm hides it in fp32.
    loud, exported = load_checkpoint(checkpoint), tmp_path / "onnx"
    with torch.no_grad():
        for parameter in loud.image_encoder.neck.output_ops[0].parameters():
            parameter *= 1e6
    loud.eval()
    for place in (tmp_path / "align", exported):
        place.mkdir()
    save_checkpoint(loud, tmp_path / "align")
    Card.seal(tmp_path / "align", Contents(kind="checkpoint", model=STUDENT), {})
    shutil.copy(onnx_artifact / "decoder.onnx", exported)
    export_encoder(loud, exported / "encoder.onnx", opset=18, tolerance=1e-2)
    needs = {"prepare": dataset, "align": tmp_path / "align", "quantize": exported}
    names = {"student": STUDENT, "precision": "fp32"}
    for place in ("calm", "out"):
        (tmp_path / place).mkdir()
    Card.seal(exported, Contents(kind="onnx", model=STUDENT, precision="fp32", load=SIZES), {})
    config = CONFIG.model_copy(update={"engine": "onnxruntime"})
    build_engine(config, **needs, **names, out=tmp_path / "calm", log=silent)

    half = convert_float_to_float16(onnx.load(exported / "encoder.onnx"), keep_io_types=True)
    onnx.save(half, exported / "encoder.onnx")
    Card.seal(exported, Contents(kind="onnx", model=STUDENT, precision="fp32", load=SIZES), {})
    with pytest.raises(Refused, match=r"leave its range: tensor \S+ of node \S+ \(Pow\) reaches"):
        build_engine(config, **needs, **names, out=tmp_path / "out", log=silent)


def test_an_unknown_engine_lists_the_known_ones(made, tmp_path):
    with pytest.raises(InputError, match="unknown build_engine.engine 'abacus': there is openvino, onnxruntime"):
        made(tmp_path / "out", engine="abacus")


def test_another_models_files_are_refused(made, tmp_path):
    with pytest.raises(InputError, match="not onnx efficientvit_sam_nano int8"):
        made(tmp_path / "out", precision="int8")


def test_bf16_is_refused_where_there_is_none(made, tmp_path):
    with pytest.raises(InputError, match="set that, or engine 'openvino'"):
        made(tmp_path / "out", engine="onnxruntime", inference_precision="bf16")


def test_a_damaged_file_is_named(made, onnx_artifact, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    for name in ("encoder.onnx", "card.json"):
        (broken / name).write_bytes((onnx_artifact / name).read_bytes())
    (broken / "decoder.onnx").write_bytes(b"no model")
    with pytest.raises(InputError, match=r"broken is damaged: .*dvc checkout"):
        made(tmp_path / "out", source=broken)
    Card.seal(broken, Contents(kind="onnx", model=STUDENT, precision="fp32", load=SIZES), {})
    with pytest.raises(InputError, match=r"decoder.onnx"):
        made(tmp_path / "again", source=broken)
