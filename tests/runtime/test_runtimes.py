"""All runtimes give PyTorch's results, for every form of prompt and image."""

import builtins
import re
import subprocess
import sys
import threading
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.bench.engines import scenes
from pipeline.build_engine import BuildEngineConfig, build_engine
from pipeline.core.artifact import Card, Contents, Refusal
from pipeline.core.errors import InputError
from pipeline.core.log import silent
from pipeline.models import build
from pipeline.runtime import Predictor, Segmenter, load, processor

STUDENT = "efficientvit_sam_nano"
ENGINES = ("openvino", "onnxruntime")
"""Those that run on a processor."""


@pytest.fixture(scope="module")
def artifacts(exported, tmp_path_factory):
    """A checkpoint, its ONNX files, and both engines."""
    root = tmp_path_factory.mktemp("runtimes")
    scenes(root / "images", "calibration", 1, 96)
    places = exported(STUDENT) | {engine: root / engine for engine in ENGINES}
    for engine in ENGINES:
        places[engine].mkdir()
        config = BuildEngineConfig(
            engine=engine,
            inference_precision="f32",
            threads=1,
            images=1,
            min_cosine=0.9999,
            min_mask_agreement=0.99,
            tensorrt=None,
        )
        contents = build_engine(
            config, prepare=root / "images", align=places["checkpoint"], quantize=places["onnx"], student=STUDENT,
            precision="fp32", out=places[engine], log=silent,
        )  # fmt: skip
        Card.seal(places[engine], contents, {})
    return places


@pytest.fixture(scope="module")
def segmenters(artifacts):
    return {name: load(place, threads=1) for name, place in artifacts.items()}


@pytest.mark.parametrize("size", [(1, 1), (1, 300), (640, 333)])
def test_all_runtimes_give_pytorchs_masks(segmenters, size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    corner = np.array([size[1], size[0]])
    prompts = (
        {"box": np.array([0, 0, *corner])},
        {"point_coords": 0.5 * corner[None], "point_labels": np.array([1])},
        {"point_coords": np.linspace(0, 1, 7)[:, None] * corner, "point_labels": np.arange(7) % 2},
        {"mask_input": np.random.default_rng(1).normal(size=(1, 64, 64))},
        {"box": np.tile([0, 0, *corner], (20, 1)) * np.linspace(0.1, 1, 20)[:, None]},
    )
    predictors = {name: Predictor(segmenter) for name, segmenter in segmenters.items()}
    for predictor in predictors.values():
        predictor.set_image(image)
    for prompt in prompts:
        expected = predictors["checkpoint"].predict(**prompt, return_logits=True)
        assert np.abs(expected.masks).max() > 1e-2
        for name, predictor in predictors.items():
            for a, b in zip(predictor.predict(**prompt, return_logits=True), expected, strict=True):
                assert a.shape == b.shape
                assert np.abs(a - b).max() < 1e-3, (name, list(prompt))


@settings(max_examples=12, deadline=None)
@given(prompts=st.integers(1, 5), points=st.integers(0, 6), mask=st.booleans(), seed=st.integers(0, 99))
def test_any_number_of_prompts_and_points_decodes_alike(segmenters, prompts, points, mask, seed):
    generator = torch.Generator().manual_seed(seed)
    arguments = (
        torch.randn(1, 256, 16, 16, generator=generator),
        torch.rand(prompts, points, 2, generator=generator) * 256,
        torch.randint(-1, 4, (prompts, points), generator=generator).float(),
        torch.randn(prompts, 1, 64, 64, generator=generator) if mask else None,
    )
    logits, ious = segmenters["checkpoint"].decode(*arguments)
    assert logits.shape == (prompts, 4, 64, 64)
    for name in ("onnx", *ENGINES):
        found, scores = segmenters[name].decode(*arguments)
        assert (found - logits).abs().max() < 1e-3
        assert (scores - ious).abs().max() < 1e-3


def test_a_batch_of_images_encodes_like_its_images(segmenters):
    images = torch.randn(3, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    expected = segmenters["checkpoint"].encode(images)
    for segmenter in segmenters.values():
        assert (segmenter.encode(images) - expected).abs().max() < 1e-3
        assert (segmenter.encode(images[1:2]) - expected[1:2]).abs().max() < 1e-3


@pytest.mark.parametrize(("at_once", "parts"), [(1, [1, 1, 1]), (2, [2, 1])])
def test_every_runtime_cuts_a_batch_that_is_too_large(monkeypatch, segmenters, at_once, parts):
    images = torch.randn(3, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    expected = segmenters["checkpoint"].encode(images)
    monkeypatch.setattr(processor, "PIXELS_AT_ONCE", at_once * 256**2)
    for segmenter in segmenters.values():
        with patch.object(segmenter, "_encode", wraps=segmenter._encode) as calls:
            assert (segmenter.encode(images) - expected).abs().max() < 1e-3
        assert [len(call.args[0]) for call in calls.call_args_list] == parts


def test_every_runtime_is_a_segmenter_of_the_same_sizes(segmenters):
    for segmenter in segmenters.values():
        assert isinstance(segmenter, Segmenter)
        assert (segmenter.image_size, segmenter.input_size, segmenter.embedding_size) == (256, 256, 16)


@pytest.mark.parametrize("name", ENGINES)
def test_threads_do_not_disturb_each_other(segmenters, name):
    segmenter = segmenters[name]
    images = [torch.full((1, 3, 256, 256), float(i)) for i in range(4)]
    expected, found = [segmenter.encode(image) for image in images], [None] * 4

    def work(i):
        for _ in range(3):
            found[i] = segmenter.encode(images[i])

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(found, expected, strict=True))


def test_openvino_computes_in_the_precision_the_card_names(artifacts):
    segmenter = load(artifacts["openvino"])
    precision = segmenter._encoder._model.get_property("INFERENCE_PRECISION_HINT")
    assert precision.to_string() == "f32"


@pytest.mark.parametrize(("kind", "package"), [("onnx", "onnxruntime"), ("openvino", "openvino")])
def test_a_missing_package_says_what_to_install(artifacts, monkeypatch, kind, package):
    real = builtins.__import__

    def absent(name, *rest, **more):
        if name.split(".")[0] == package:
            raise ImportError(f"No module named {name!r}")
        return real(name, *rest, **more)

    monkeypatch.setattr(builtins, "__import__", absent)
    with pytest.raises(InputError, match=f"pip install {package}"):
        load(artifacts[kind])


def test_what_is_no_model_is_refused(artifacts, tmp_path):
    with pytest.raises(InputError, match="not an artifact"):
        load(tmp_path)
    Card.seal(tmp_path, Contents(kind="dataset"), {})
    with pytest.raises(InputError, match="kind 'dataset', which holds no model"):
        load(tmp_path)
    refusal = Refusal(
        stage="export", rule="export.rules", value=None, limit=None, reason="encoder.onnx: it has a Loop."
    )
    Card.seal(tmp_path, Contents(kind="refusal", refusal=refusal), {})
    with pytest.raises(
        InputError, match=r"holds no model: export refused it by export\.rules\. encoder\.onnx: it has a L"
    ):
        load(tmp_path)
    Card.seal(tmp_path, Contents(kind="engine", load={"engine": "abacus"}), {})
    with pytest.raises(InputError, match="'abacus'; this version runs openvino, onnxruntime"):
        load(tmp_path)
    Card.seal(tmp_path, Contents(kind="onnx"), {})
    with pytest.raises(InputError, match="lacks image_size"):
        load(tmp_path)
    with pytest.raises(InputError, match="at least 1"):
        load(artifacts["onnx"], threads=0)


@pytest.mark.parametrize(
    ("kind", "file"), [("onnx", "decoder.onnx"), ("openvino", "encoder.bin"), ("checkpoint", "model.safetensors")]
)
def test_a_missing_or_damaged_file_is_named(artifacts, tmp_path, kind, file):
    for path in artifacts[kind].iterdir():
        if path.name != file:
            (tmp_path / path.name).write_bytes(path.read_bytes())
    contents = Contents(**Card.read(tmp_path).model_dump(exclude={"digest", "parents"}))
    Card.seal(tmp_path, contents, {})
    with pytest.raises(InputError, match=file):
        load(tmp_path)
    (tmp_path / file).write_bytes(b"no model")
    Card.seal(tmp_path, contents, {})
    if file != "encoder.bin":
        with pytest.raises(InputError, match=file):
            load(tmp_path)


@pytest.mark.parametrize("kind", ["onnx", "openvino", "checkpoint"])
def test_files_that_are_not_those_of_the_card_are_refused(artifacts, tmp_path, kind):
    for path in artifacts[kind].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    load(tmp_path)
    file = max((path for path in tmp_path.iterdir()), key=lambda path: path.stat().st_size)
    data = bytearray(file.read_bytes())
    data[-100] ^= 1  # one bit of one weight: every reader takes it
    file.write_bytes(data)
    with pytest.raises(InputError, match=rf"{tmp_path} is damaged: .*dvc checkout"):
        load(tmp_path)


@pytest.mark.parametrize(("kind", "device"), [("checkpoint", "abacus"), ("onnx", "abacus"), ("openvino", "cuda")])
def test_an_absent_device_is_named(artifacts, kind, device):
    with pytest.raises(InputError, match=device):
        load(artifacts[kind], device=device)


def test_pytorch_runs_the_encoder_in_bf16_and_leaves_the_given_model_alone():
    sam = build(STUDENT, seed=1)
    image = torch.rand(2, 3, 256, 256, generator=torch.Generator().manual_seed(0))
    expected = load(sam).encode(image)
    found = load(sam, precision="bf16").encode(image)
    assert found.dtype == torch.float32
    assert torch.nn.functional.cosine_similarity(found.flatten(), expected.flatten(), dim=0) > 0.99
    assert not torch.equal(found, expected)
    assert torch.equal(load(sam).encode(image), expected)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"precision": "int8"}, "in fp32, bf16, fp16, not in 'int8'"),
        ({"execution": "quick"}, "one of eager, compile, cuda_graph, not 'quick'"),
        ({"execution": "cuda_graph"}, "needs a device 'cuda', not 'cpu'"),
    ],
)
def test_ways_to_run_pytorch_that_are_not_there_are_refused(options, says):
    with pytest.raises(InputError, match=says):
        load(build(STUDENT), **options)


def test_engines_have_their_own_precision(artifacts):
    with pytest.raises(InputError, match="precision and execution are in its files"):
        load(artifacts["openvino"], precision="bf16")


COMPILED = """
import torch
from pipeline.models import build
from pipeline.runtime import load
sam = build("efficientvit_sam_nano", seed=1)
image = torch.rand(1, 3, 256, 256, generator=torch.Generator().manual_seed(0))
found, expected = load(sam, execution="compile").encode(image), load(sam).encode(image)
assert torch.allclose(found, expected, atol=1e-4), (found - expected).abs().max()
"""


ROOT = Path(__file__).parents[2]
COMPILES = """
import torch
from pipeline.models.attention import dilated_attention

def test_compiles():
    compiled = torch.compile(dilated_attention, backend="eager", fullgraph=True)
    x = torch.rand(1, 2, 8, 4)
    assert torch.equal(compiled(x, x, x, 4, 2), dilated_attention(x, x, x, 4, 2))
"""


@pytest.mark.slow
def test_what_make_runs_on_gpus_can_be_compiled(tmp_path):
    makefile = (ROOT / "Makefile").read_text()
    (options,) = re.findall(r"^UNCHECKED := (.*)$", makefile, re.MULTILINE)
    assert 'python -m pytest -m gpu -o addopts="$(UNCHECKED)"' in makefile
    (tmp_path / "test_compiles.py").write_text(COMPILES)
    command = [sys.executable, "-m", "pytest", "-q", "-c", str(ROOT / "pyproject.toml"), "-o", f"addopts={options}"]
    done = subprocess.run([*command, str(tmp_path)], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-2000:]


@pytest.mark.slow
def test_a_compiled_encoder_gives_the_same():
    # In a process without the checks of shapes, which the compiler cannot follow.
    done = subprocess.run([sys.executable, "-c", COMPILED], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
