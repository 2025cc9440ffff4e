"""TensorRT without a GPU: the names exist in its bindings, and the calls are those its documentation asks for."""

import ast
import gzip
import json
import sys
import types
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline.build_engine import BuildEngineConfig
from pipeline.build_engine.config import TensorRtConfig
from pipeline.build_engine.tensorrt import build, shapes, tensorrt
from pipeline.core.artifact import Card
from pipeline.core.errors import InputError
from pipeline.runtime.tensorrt import SIDECAR, bindings, machine, require_match

ROOT = Path(__file__).parents[2]
NAMES = sorted((ROOT / "tests/reference/tensorrt").glob("*.names.gz"))
SOURCES = [ROOT / "pipeline/build_engine/tensorrt.py", ROOT / "pipeline/runtime/tensorrt.py"]
OURS = {"__version__", "DataType", "name", "shape"}
"""Defined in Python, or shorter than what the list of names holds for certain."""
HERE = {"tensorrt": "11.4.0", "gpu": "NVIDIA H100", "compute_capability": "9.0", "cuda": "13.0"}
TRT = TensorRtConfig.model_validate({
    "profile": {"batch": [1, 1, 8], "prompts": [1, 16, 64], "points": [1, 2, 12]},
    "optimization_level": 3, "hardware_compatibility": "none", "workspace_mib": 512, "timing_cache": None,
})  # fmt: skip
CONFIG = BuildEngineConfig(
    engine="tensorrt", inference_precision="f32", threads=1, images=1, min_cosine=0.9, min_mask_agreement=0.9,
    tensorrt=TRT,
)  # fmt: skip
OBJECTS = {
    "trt", "builder", "network", "parser", "settings", "profile", "timings", "engine", "tensor", "e", "context",
    "_engine", "_trt", "_runtime",
}  # fmt: skip
"""What our code calls things of TensorRT."""
PYTHON = {
    "model_dump",
    "data_ptr",
    "shape",
    "to",
    "contiguous",
    "record_stream",
    "hardware_compatibility",
    "startswith",
}
"""Attributes of tensors and configs that go by the same names."""


def used():
    """Every attribute that our code takes from TensorRT's objects."""
    found = set()
    for source in SOURCES:
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.Attribute):
                owner = node.value
                while isinstance(owner, ast.Attribute | ast.Call):
                    named = isinstance(owner, ast.Attribute) and owner.attr in OBJECTS
                    owner = owner.value if isinstance(owner, ast.Attribute) else owner.func
                    if named:
                        break
                else:
                    named = isinstance(owner, ast.Name) and owner.id in OBJECTS
                if named:
                    found.add(node.attr)
    return found - PYTHON - OBJECTS


@pytest.mark.parametrize("path", NAMES, ids=lambda p: p.name.removesuffix(".names.gz"))
def test_every_attribute_exists_in_the_bindings_of_both_versions(path):
    names = gzip.decompress(path.read_bytes()).decode().split()
    asked = used() - OURS
    assert {"STRONGLY_TYPED", "execute_async_v3", "build_serialized_network", "set_timing_cache"} <= asked
    # Linkers let a string end in another one: `num_errors` lies in `get_num_errors`.
    missing = [n for n in sorted(asked) if n not in names and not any(known.endswith(n) for known in names)]
    assert missing == []


def test_the_list_of_names_tells_what_version_11_dropped():
    older, newer = (set(gzip.decompress(path.read_bytes()).decode().split()) for path in NAMES)
    assert "IInt8EntropyCalibrator2" in older - newer


class Recorded:
    """Stands for any object of TensorRT: answers as told, and writes down what is called."""

    def __init__(self, calls, name, **answers):
        self.__dict__.update(answers, _calls=calls, _name=name)

    def __getattr__(self, name):
        def call(*arguments, **named):
            self._calls.append((f"{self._name}.{name}", arguments))

        return call

    def __setattr__(self, name, value):
        self._calls.append((f"{self._name}.{name} =", (value,)))


LAYERS = {"Layers": [
    {"Name": "a", "Outputs": [{"Format/Datatype": "Row major linear FP16 format"}]},
    {"Name": "b", "Outputs": [{"Format/Datatype": "Int8 NHWC"}]},
    {"Name": "c", "Outputs": [{"Format/Datatype": "Row major linear FP32"}]},
    {"Name": "d", "Outputs": [{"Format/Datatype": "Row major linear FP16 format"}]},
    "a layer told without detail",
]}  # fmt: skip
INPUTS = {
    "image_embedding": (1, 256, 16, 16),
    "point_coords": (-1, -1, 2),
    "point_labels": (-1, -1),
    "mask_input": (-1, 1, 64, 64),
    "has_mask_input": (1,),
}


def fake(calls, version="11.4.0", parses=True, plan=b"plan"):
    """The package, as far as our code meets it."""
    tensors = [types.SimpleNamespace(name=name, shape=shape) for name, shape in INPUTS.items()]
    network = Recorded(calls, "network", num_inputs=len(tensors), get_input=lambda i: tensors[i])
    error = types.SimpleNamespace(
        node_name=lambda: "/norm/Pow", node_operator=lambda: "OneHot", desc=lambda: "no shape"
    )
    parser = Recorded(
        calls, "parser", parse_from_file=lambda path: parses, num_errors=2, get_error=lambda i: error
    )  # fmt: skip
    settings = Recorded(
        calls, "settings", create_timing_cache=lambda data: types.SimpleNamespace(serialize=lambda: b"t" + data)
    )
    profile = Recorded(calls, "profile")

    def create_network(flags):
        calls.append(("create_network", (flags,)))
        return network

    builder = types.SimpleNamespace(
        create_network=create_network,
        create_builder_config=lambda: settings,
        create_optimization_profile=lambda: profile,
        build_serialized_network=lambda network, settings: plan,
    )
    inspector = types.SimpleNamespace(get_engine_information=lambda form: json.dumps(LAYERS))
    engine = types.SimpleNamespace(create_engine_inspector=lambda: inspector)
    logger = type("Logger", (), {"WARNING": 2, "__init__": lambda self, level: None})
    return types.SimpleNamespace(
        __version__=version,
        Logger=logger,
        Builder=lambda logger: builder,
        OnnxParser=lambda network, logger: parser,
        Runtime=lambda logger: types.SimpleNamespace(deserialize_cuda_engine=lambda data: engine),
        NetworkDefinitionCreationFlag=types.SimpleNamespace(STRONGLY_TYPED=1),
        ProfilingVerbosity=types.SimpleNamespace(DETAILED="detailed"),
        HardwareCompatibilityLevel=types.SimpleNamespace(
            NONE="none", AMPERE_PLUS="ampere", SAME_COMPUTE_CAPABILITY="s"
        ),
        MemoryPoolType=types.SimpleNamespace(WORKSPACE="workspace"),
        LayerInformationFormat=types.SimpleNamespace(JSON="json"),
    )


@pytest.mark.parametrize(("version", "flags"), [("10.16.1", 2), ("11.4.0", 0)])
def test_a_build_asks_for_strong_types_profiles_and_detail(tmp_path, version, flags):
    calls = []
    plan, layers = build(fake(calls, version), tmp_path / "decoder.onnx", TRT, HERE)
    assert plan == b"plan"
    assert layers == {"fp16": 0.5, "fp32": 0.25, "int8": 0.25}
    assert calls[0] == ("create_network", (flags,))
    assert ("settings.profiling_verbosity =", ("detailed",)) in calls
    assert ("settings.set_memory_pool_limit", ("workspace", 512 << 20)) in calls
    shaped = {arguments[0]: arguments[1:] for name, arguments in calls if name == "profile.set_shape"}
    assert shaped["point_coords"] == ((1, 1, 2), (16, 2, 2), (64, 12, 2))
    assert shaped["mask_input"] == ((1, 1, 64, 64), (1, 1, 64, 64), (64, 1, 64, 64))
    assert shaped["has_mask_input"] == ((1,), (1,), (1,))
    assert set(shaped) == set(INPUTS)


def test_timings_are_kept_by_gpu_and_version_and_used_again(tmp_path):
    config = TRT.model_copy(update={"timing_cache": str(tmp_path / "timings")})
    for expected in (b"t", b"tt"):
        build(fake([]), tmp_path / "encoder.onnx", config, HERE)
        (kept,) = (tmp_path / "timings").iterdir()
        assert kept.name == "NVIDIA_H100-9.0-11.4.0.cache"
        assert kept.read_bytes() == expected


def test_all_errors_of_the_parser_are_told_with_their_nodes(tmp_path):
    with pytest.raises(InputError, match=r"cannot read .*decoder.onnx:\n  /norm/Pow \(OneHot\): no shape\n  /norm/Pow"):
        build(fake([], parses=False), tmp_path / "decoder.onnx", TRT, HERE)


def test_a_build_that_gives_nothing_is_an_error(tmp_path):
    with pytest.raises(InputError, match="cannot build"):
        build(fake([], plan=None), tmp_path / "decoder.onnx", TRT, HERE)


def test_free_axes_that_the_profile_does_not_know_are_refused():
    with pytest.raises(InputError, match="input image of shape .* has 2 free axes; the profile knows 1"):
        shapes("image", (-1, 3, -1, 512), TRT)


def test_a_profile_must_rise():
    profile = TRT.profile.model_dump() | {"points": [2, 1, 12]}
    with pytest.raises(ValueError, match="least, usual and greatest"):
        TensorRtConfig.model_validate(TRT.model_dump() | {"profile": profile})


def test_without_the_package_or_a_gpu_it_says_what_to_do(monkeypatch, tmp_path):
    if "tensorrt" not in sys.modules:
        monkeypatch.setitem(sys.modules, "tensorrt", None)
        with pytest.raises(InputError, match="pip install tensorrt"):
            bindings()
    monkeypatch.setitem(sys.modules, "tensorrt", types.SimpleNamespace(__version__="9.3.0"))
    with pytest.raises(InputError, match=r"TensorRT 9.3.0 is not supported: install 10.16 or 11"):
        bindings()
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    with pytest.raises(InputError, match=r"start this on a GPU worker \(docs/how-to/gpu-workers.md\)"):
        machine(fake([]), torch.device("cuda"))
    with pytest.raises(InputError, match="build_engine.tensorrt is null"):
        tensorrt(CONFIG.model_copy(update={"tensorrt": None}), tmp_path, tmp_path)
    with pytest.raises(InputError, match="choose the precision by `precisions`"):
        tensorrt(CONFIG.model_copy(update={"inference_precision": "bf16"}), tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("level", "changed", "refused"),
    [
        ("none", {}, None),
        (
            "none",
            {"gpu": "NVIDIA A100", "compute_capability": "8.0"},
            "built for gpu NVIDIA H100, compute_cap",
        ),
        ("none", {"tensorrt": "10.16.1"}, "built for tensorrt 11.4.0; this machine has 10.16.1"),
        ("same_compute_capability", {"gpu": "NVIDIA H200"}, None),
        ("same_compute_capability", {"gpu": "NVIDIA A100", "compute_capability": "8.0"}, "compute_capability 9.0"),
        ("ampere_plus", {"gpu": "NVIDIA A100", "compute_capability": "8.0"}, None),
        ("ampere_plus", {"gpu": "Tesla T4", "compute_capability": "7.5"}, "built for gpu"),
        ("ampere_plus", {"tensorrt": "10.16.1"}, "built for tensorrt"),
    ],
)
def test_engines_of_another_gpu_or_version_are_refused_with_the_command_that_builds_them(
    tmp_path, level, changed, refused
):
    (tmp_path / SIDECAR).write_text(json.dumps(HERE | {"hardware_compatibility": level}))
    if refused is None:
        require_match(tmp_path, HERE | changed, "tinysam", "fp16")
        return
    with pytest.raises(InputError, match=refused) as caught:
        require_match(tmp_path, HERE | changed, "tinysam", "fp16")
    assert "`dvc repro --force --single-item build_engine@tinysam-fp16`" in str(caught.value)


@pytest.mark.parametrize("text", ["", "{}", "[" * 300, json.dumps(HERE | {"hardware_compatibility": 1})])
def test_a_damaged_sidecar_is_refused(tmp_path, text):
    (tmp_path / SIDECAR).write_text(text)
    with pytest.raises(InputError, match=r"engine\.json.* Rebuild the engine\."):
        require_match(tmp_path, HERE, "tinysam", "fp16")


class Context:
    """An execution context that doubles its input, on the processor."""

    def __init__(self, calls):
        self.shapes, self.addresses, self.ran, self.calls = {}, {}, 0, calls

    def set_input_shape(self, name, shape):
        self.shapes[name] = shape
        return shape[0] <= 8

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def get_tensor_shape(self, name):
        return (self.shapes["image"][0], 256, 2, 2)

    def execute_async_v3(self, stream):
        self.calls.append(("execute", stream))
        self.ran += 1
        return True


class Stream:
    """A stream that writes down what it waits for; the host must not wait for it."""

    def __init__(self, calls, number):
        self.calls, self.cuda_stream = calls, number

    def wait_stream(self, other):
        self.calls.append(("wait", self.cuda_stream, other.cuda_stream))


def test_the_runtime_names_tensors_and_keeps_contexts(monkeypatch, tmp_path):
    from pipeline.runtime.tensorrt import _Engine

    made, calls, streams = [], [], count(1)

    def create():
        made.append(Context(calls))
        return made[-1]

    kinds = types.SimpleNamespace(FLOAT=0, HALF=1, BF16=2, INT64=3, INT32=4, BOOL=5)
    engine = types.SimpleNamespace(
        num_io_tensors=2,
        get_tensor_name=lambda i: ("image", "image_embedding")[i],
        get_tensor_mode=lambda name: "in" if name == "image" else "out",
        get_tensor_dtype=lambda name: kinds.HALF,
        get_tensor_profile_shape=lambda name, profile: [(1, 3, 8, 8), (1, 3, 8, 8), (8, 3, 8, 8)],
        create_execution_context=create,
    )
    trt = types.SimpleNamespace(
        __version__="11.4.0",
        Logger=type("Logger", (), {"WARNING": 2, "__init__": lambda self, level: None}),
        Runtime=lambda logger: types.SimpleNamespace(deserialize_cuda_engine=lambda data: engine if data else None),
        TensorIOMode=types.SimpleNamespace(INPUT="in", OUTPUT="out"),
        DataType=kinds,
    )
    caller = Stream(calls, 0)
    monkeypatch.setattr("torch.cuda.current_stream", lambda device: caller)
    monkeypatch.setattr("torch.cuda.Stream", lambda: Stream(calls, next(streams)))
    monkeypatch.setattr("torch.Tensor.record_stream", lambda tensor, stream: None)
    path = tmp_path / "encoder.engine"
    path.write_bytes(b"")
    with pytest.raises(InputError, match="cannot be deserialized by TensorRT 11.4.0"):
        _Engine(trt, path)
    path.write_bytes(b"plan")
    loaded = _Engine(trt, path)
    for _ in range(2):
        out = loaded({"image": torch.zeros(4, 3, 8, 8)})["image_embedding"]
        assert out.shape == (4, 256, 2, 2)
        assert out.dtype == torch.float16
        assert made[0].addresses["image_embedding"] == out.data_ptr()
    assert len(made) == 1
    assert made[0].ran == 2
    # Neither on the default stream nor waited for: its own stream waits for the inputs, the caller's for the results.
    assert calls == 2 * [("wait", 1, 0), ("execute", 1), ("wait", 0, 1)]
    with pytest.raises(InputError, match=r"takes image of \(1, 3, 8, 8\) to \(8, 3, 8, 8\), not \(9, 3, 8, 8\)"):
        loaded({"image": torch.zeros(9, 3, 8, 8)})


def test_a_processor_is_no_place_for_it(tmp_path):
    from pipeline.runtime import load

    load_as = {"engine": "tensorrt", "image_size": 256, "input_size": 256, "embedding_size": 16}
    (tmp_path / "encoder.engine").write_bytes(np.zeros(4).tobytes())
    from pipeline.core.artifact import Contents

    Card.seal(tmp_path, Contents(kind="engine", model="tinysam_nano", precision="fp16", load=load_as), {})
    with pytest.raises(InputError, match="run on device 'cuda', not on 'cpu'"):
        load(tmp_path, device="cpu")
    # Left to itself it goes to the GPU, and says what is missing where there is none.
    with pytest.raises(InputError, match=r"does not exist|cannot be imported|needs an NVIDIA GPU"):
        load(tmp_path)
