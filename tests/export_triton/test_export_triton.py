"""A Triton model repository: Triton's own schema, its rules for ensembles, and the predictor's masks."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.core.artifact import Card, Contents
from pipeline.core.errors import InputError
from pipeline.export_triton import RepositoryOptions, export_triton
from pipeline.ops.geometry import masks_to_original, to_input
from pipeline.runtime import Predictor, load
from pipeline.runtime.exported import decoder_feeds
from pipeline.runtime.onnxruntime import open_session
from pipeline.runtime.prompts import prepare

STUDENT = "efficientvit_sam_nano"
NAME = f"{STUDENT}_fp32"
TYPES = {"TYPE_FP32": np.float32}


@pytest.fixture(scope="module")
def onnx(exported):
    return exported(STUDENT)["onnx"]


@pytest.fixture(scope="module")
def repository(onnx, tmp_path_factory):
    out = tmp_path_factory.mktemp("triton") / "models"
    export_triton(onnx, out)
    return out


def config(repository, name):
    """A model's configuration, parsed by Triton's schema, which refuses unknown fields and values."""
    return text_format.Parse((repository / name / "config.pbtxt").read_text(), ModelConfig())


def configs(repository):
    return {path.name: config(repository, path.name) for path in repository.iterdir()}


def full_dims(model, tensor):
    return ([-1] if model.max_batch_size else []) + list(tensor.dims)


def test_every_configuration_is_in_tritons_schema_and_layout(repository):
    models = configs(repository)
    assert sorted(models) == [NAME, f"{NAME}_decoder", f"{NAME}_encoder"]
    for name, model in models.items():
        assert model.name == name
        assert [path.name for path in (repository / name).iterdir() if path.is_dir()] == ["1"]
        files = [path.name for path in (repository / name / "1").iterdir()]
        assert files == ([] if model.platform == "ensemble" else ["model.onnx"])
        assert model.platform == "ensemble" or model.backend == "onnxruntime"
        assert model.parameters["input_size"].string_value == "256"
    encoder = models[f"{NAME}_encoder"]
    assert (encoder.max_batch_size, encoder.dynamic_batching.max_queue_delay_microseconds) == (8, 2000)


@pytest.mark.parametrize("part", ["encoder", "decoder"])
def test_a_configuration_states_the_tensors_of_its_file(repository, part):
    model = config(repository, f"{NAME}_{part}")
    session = open_session(repository / f"{NAME}_{part}" / "1" / "model.onnx")
    for stated, actual in ((model.input, session.get_inputs()), (model.output, session.get_outputs())):
        expected = {t.name: [d if isinstance(d, int) else -1 for d in t.shape] for t in actual}
        assert {tensor.name: full_dims(model, tensor) for tensor in stated} == expected
        assert all(tensor.data_type == ModelConfig.DESCRIPTOR.file.enum_types_by_name["DataType"]
                   .values_by_name["TYPE_FP32"].number for tensor in stated)  # fmt: skip


def test_the_ensemble_keeps_tritons_rules(repository):
    """Every input of a step is mapped once, and connected tensors agree in type and shape, as Triton checks."""
    models = configs(repository)
    ensemble = models[NAME]
    known = {tensor.name: (tensor.data_type, full_dims(ensemble, tensor)) for tensor in ensemble.input}
    for step in ensemble.ensemble_scheduling.step:
        model = models[step.model_name]
        assert set(step.input_map) == {tensor.name for tensor in model.input}
        assert set(step.output_map) <= {tensor.name for tensor in model.output}
        for tensor in model.input:
            kind, dims = known[step.input_map[tensor.name]]
            assert kind == tensor.data_type
            assert all(-1 in pair or len(set(pair)) == 1 for pair in zip(dims, full_dims(model, tensor), strict=True))
        for tensor in model.output:
            known[step.output_map[tensor.name]] = tensor.data_type, full_dims(model, tensor)
    for tensor in ensemble.output:
        kind, dims = known[tensor.name]
        assert kind == tensor.data_type
        assert all(-1 in pair or len(set(pair)) == 1 for pair in zip(dims, tensor.dims, strict=True))


def infer(repository, name, feeds):
    """What Triton does: one model, or the steps of an ensemble."""
    model = config(repository, name)
    if model.platform != "ensemble":
        session = open_session(repository / name / "1" / "model.onnx")
        outputs = [tensor.name for tensor in model.output]
        return dict(zip(outputs, session.run(outputs, feeds), strict=True))
    tensors = dict(feeds)
    for step in model.ensemble_scheduling.step:
        inputs = {own: tensors[outer] for own, outer in step.input_map.items()}
        results = infer(repository, step.model_name, inputs)
        tensors |= {outer: results[own] for own, outer in step.output_map.items()}
    return {tensor.name: tensors[tensor.name] for tensor in model.output}


def test_the_ensemble_gives_the_predictors_masks(repository, onnx):
    segmenter = load(onnx, threads=1)
    predictor = Predictor(segmenter)
    image = np.random.default_rng(0).integers(0, 256, (120, 200, 3), dtype=np.uint8)
    predictor.set_image(image)
    boxes = np.array([[10, 10, 90, 80], [50, 20, 190, 110]])
    expected = predictor.predict(box=boxes, multimask_output=True)

    prompts = prepare(None, None, boxes, None, size=image.shape[:2], segmenter=segmenter)
    placeholder = torch.zeros(1, 256, segmenter.embedding_size, segmenter.embedding_size)
    feeds = decoder_feeds(placeholder, prompts.point_coords, prompts.point_labels, None)
    del feeds["image_embedding"]
    feeds["image"] = to_input(image, segmenter.input_size)[None].numpy()
    results = infer(repository, NAME, feeds)

    logits = torch.from_numpy(results["low_res_logits"])[:, 1:]
    masks = masks_to_original(logits, image.shape[:2], segmenter.image_size) > 0
    assert (masks.numpy() == expected[0]).all()
    np.testing.assert_allclose(results["iou_predictions"][:, 1:], expected[1], atol=1e-6)
    np.testing.assert_allclose(results["image_embedding"], predictor.get_image_embedding().numpy(), atol=1e-6)


def test_an_embedding_can_be_kept_for_further_prompts(repository, onnx):
    segmenter = load(onnx, threads=1)
    images = torch.rand(2, 3, 256, 256)
    embeddings = infer(repository, f"{NAME}_encoder", {"image": images.numpy()})["image_embedding"]
    coords, labels = torch.rand(3, 2, 2) * 256, torch.ones(3, 2)
    feeds = decoder_feeds(torch.from_numpy(embeddings[1:]), coords, labels, None)
    results = infer(repository, f"{NAME}_decoder", feeds)
    logits, _ = segmenter.decode(segmenter.encode(images[1:]), coords, labels)
    np.testing.assert_allclose(results["low_res_logits"], logits.numpy(), atol=1e-4)


PROFILE = json.dumps({"profile": {"batch": [1, 1, 4]}, "gpu": "a GPU"})


def engine(folder, onnx, sidecar=PROFILE, **load_as):
    """An engine artifact; TensorRT's files are stand-ins, since only their names and profile are read."""
    folder.mkdir()
    card = Card.read(onnx)
    for part in ("encoder", "decoder"):
        (folder / f"{part}.engine").write_bytes(b"plan")
    (folder / "engine.json").write_text(sidecar)
    contents = Contents(kind="engine", model=STUDENT, precision="fp16", load=dict(card.load) | load_as)
    Card.seal(folder, contents, {})
    return folder


def test_tensorrt_engines_become_plans_with_the_batches_of_their_profile(tmp_path, onnx):
    source = engine(tmp_path / "engine", onnx, engine="tensorrt")
    options = RepositoryOptions(name="sam", instances=2, max_queue_delay_us=0)
    encoder, decoder, _ = export_triton(source, tmp_path / "models", options)
    assert (encoder / "1/model.plan").read_bytes() == b"plan"
    models = configs(tmp_path / "models")
    assert (models["sam_encoder"].backend, models["sam_encoder"].max_batch_size) == ("tensorrt", 4)
    assert (models["sam_decoder"].instance_group[0].count, decoder.name) == (2, "sam_decoder")


def test_a_damaged_sidecar_is_said_in_one_line(tmp_path, onnx):
    source = engine(tmp_path / "engine", onnx, "{}", engine="tensorrt")
    with pytest.raises(InputError, match=r"engine.json.*profile.*Rebuild the engine"):
        export_triton(source, tmp_path / "models")


def test_models_are_added_to_a_repository_and_none_is_overwritten(tmp_path, onnx):
    export_triton(onnx, tmp_path / "models")
    export_triton(onnx, tmp_path / "models", RepositoryOptions(name="second"))
    assert len(list((tmp_path / "models").iterdir())) == 6
    with pytest.raises(InputError, match="exists: delete it, or choose another name"):
        export_triton(onnx, tmp_path / "models")
    assert not list(tmp_path.glob(".triton-*"))


def test_what_triton_cannot_run_is_refused(tmp_path, onnx, exported):
    with pytest.raises(InputError, match="kind 'checkpoint', which is not exported to Triton"):
        export_triton(exported(STUDENT)["checkpoint"], tmp_path / "a")
    source = engine(tmp_path / "engine", onnx, engine="openvino")
    with pytest.raises(InputError, match="engine 'openvino', which is not exported to Triton"):
        export_triton(source, tmp_path / "b")
    with pytest.raises(InputError, match="cannot be a model's name"):
        export_triton(onnx, tmp_path / "c", RepositoryOptions(name="../up"))
    assert not (tmp_path / "c").exists()


def test_the_command_prints_the_directories(tmp_path, onnx):
    shutil.copytree(onnx, tmp_path / "model")
    done = CliRunner().invoke(app, ["export_triton", str(tmp_path / "model"), str(tmp_path / "models")])
    assert done.exit_code == 0, done.output
    assert all(Path(line).is_dir() for line in done.output.split())
