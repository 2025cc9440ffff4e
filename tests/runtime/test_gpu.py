"""What runs on a GPU gives what a processor gives: PyTorch in every way of running, TensorRT from build to masks."""

import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from pipeline.bench.engines import scenes
from pipeline.build_engine import BuildEngineConfig, build_engine
from pipeline.build_engine.config import Profile, TensorRtConfig
from pipeline.core.artifact import Card, Contents
from pipeline.core.log import silent
from pipeline.data.shards import Shards
from pipeline.export import ExportConfig, export
from pipeline.models import STUDENTS, build
from pipeline.models.sam import save_checkpoint
from pipeline.quantize import QuantizeConfig, SearchConfig, quantize
from pipeline.runtime import Predictor, load

pytestmark = pytest.mark.gpu

NANOS = [name for name in STUDENTS if name.endswith("_nano")]
LEAST_COSINE = {"fp32": 0.9999, "bf16": 0.99, "fp16": 0.999}
BOXES = np.array([[20, 30, 90, 100], [5, 5, 60, 50], [100, 40, 190, 180]], np.float32)
QUANTIZE = QuantizeConfig(
    calibration_images=2, holdout_images=1, seed=0, method="onnxruntime", calibration="max", percentile=99.9,
    search=SearchConfig(candidates=100, lowest=0.01, highest=1.2, rounds=3, rows=512),
    quantize_attention=False, keep=[], decoder="fp32", sensitivity_images=0, min_cosine=0.0,
)  # fmt: skip
BUILD = BuildEngineConfig(
    engine="tensorrt", inference_precision="f32", threads=2, images=2, min_cosine=0.98, min_mask_agreement=0.8,
    tensorrt=TensorRtConfig(
        profile=Profile(batch=[1, 1, 4], prompts=[1, 4, 16], points=[1, 2, 8]),
        optimization_level=2, hardware_compatibility="none", workspace_mib=None, timing_cache=None,
    ),
)  # fmt: skip


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """Three drawn scenes as a calibration split."""
    place = tmp_path_factory.mktemp("images")
    scenes(place, "calibration", 3, 224)
    return place


def cosine(a, b):
    return float(torch.nn.functional.cosine_similarity(a.cpu().flatten(), b.cpu().flatten(), dim=0))


@pytest.mark.parametrize("student", NANOS)
@pytest.mark.parametrize("precision", LEAST_COSINE)
@pytest.mark.parametrize("execution", ["eager", "compile", "cuda_graph"])
def test_pytorch_on_a_gpu_gives_what_a_processor_gives(images, student, precision, execution):
    image = Shards(images, "calibration")[0].image
    here = Predictor(load(build(student, seed=1)))
    there = Predictor(load(build(student, seed=1), device="cuda", precision=precision, execution=execution))
    for predictor in (here, there):
        predictor.set_images([image, image[:100]])
        predictor.select(1)
    assert there.features.is_cuda
    assert cosine(there.features, here.features) > LEAST_COSINE[precision]
    if precision == "fp32":
        for a, b in zip(there.predict_batch(boxes=BOXES), here.predict_batch(boxes=BOXES), strict=True):
            assert np.mean(np.abs(a.astype(np.float32) - b.astype(np.float32))) < 1e-2


@pytest.fixture(scope="module", params=NANOS)
def engine(request, images, tmp_path_factory):
    """A student's checkpoint, and its TensorRT engine in fp16 as the stages make it."""
    pytest.importorskip("tensorrt", reason="`make setup-gpu` installs TensorRT")
    student, root = request.param, tmp_path_factory.mktemp(request.param)
    places = {name: root / name for name in ("align", "export", "quantize", "build_engine")}
    for place in places.values():
        place.mkdir()
    save_checkpoint(build(student, seed=1), places["align"])
    Card.seal(places["align"], Contents(kind="checkpoint", model=student), {})
    common = {"align": places["align"], "student": student, "log": silent}
    settings = ExportConfig(opset=18, max_difference=1e-3)
    Card.seal(places["export"], export(settings, **common, out=places["export"]), {})
    common |= {"prepare": images, "precision": "fp16"}
    contents = quantize(QUANTIZE, **common, export=places["export"], out=places["quantize"])
    Card.seal(places["quantize"], contents, {})
    contents = build_engine(BUILD, **common, quantize=places["quantize"], out=places["build_engine"])
    Card.seal(places["build_engine"], contents, {})
    return places


def test_an_engine_passes_its_gate_and_tells_where_it_was_built(engine):
    told = json.loads((engine["build_engine"] / "engine.json").read_text())
    assert told["gpu"] == torch.cuda.get_device_name()
    assert json.loads((engine["build_engine"] / "metrics.json").read_text())["embedding_cosine"] >= BUILD.min_cosine


def test_an_engine_serves_several_threads_with_pytorchs_masks(engine, images):
    image = Shards(images, "calibration")[2].image
    segmenter = load(engine["build_engine"])
    expected = Predictor(load(engine["align"]))
    expected.set_image(image)
    truth = expected.predict_batch(boxes=BOXES).low_res_masks

    def serve(_):
        predictor = Predictor(segmenter)
        predictor.set_image(image)
        return predictor.predict_batch(boxes=BOXES).low_res_masks

    with ThreadPoolExecutor(4) as pool:
        for found in pool.map(serve, range(16)):
            assert np.mean((found > 0) == (truth > 0)) > 0.97
