"""The command ``export_triton``: encoder, decoder and their ensemble for NVIDIA's Triton Inference Server.

The ensemble ``NAME`` takes one preprocessed image with its prompts. ``NAME_encoder`` takes batches of images, which
Triton gathers from concurrent requests; ``NAME_decoder`` takes one image's embedding with any number of prompts, so
that a client that keeps the embedding encodes each image once. Resizing of photographs and masks stays with the client,
as for every exported model (`pipeline.ops.geometry`).

Source: Triton's model configuration (``model_config.proto``) and repository layout.
"""

import json
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import onnx
from pydantic import BaseModel, Field

from pipeline.core.artifact import Card
from pipeline.core.errors import InputError
from pipeline.core.untrusted import json_file
from pipeline.models.sam import EMBEDDING_CHANNELS
from pipeline.runtime.exported import require_files, sizes
from pipeline.runtime.tensorrt import SIDECAR

CONFIG = "config.pbtxt"
_LARGEST_SIDECAR = 64 << 20
"""Bytes."""
_VERSION = "1"
_ENCODER_INPUTS, _ENCODER_OUTPUTS = ("image",), ("image_embedding",)
_DECODER_INPUTS = ("image_embedding", "point_coords", "point_labels", "mask_input", "has_mask_input")
_DECODER_OUTPUTS = ("low_res_logits", "iou_predictions")
_FILES = {"onnxruntime": (".onnx", "model.onnx"), "tensorrt": (".engine", "model.plan")}
"""Suffix in an artifact and name in a repository, by Triton's backend."""
_TYPES = {
    onnx.TensorProto.FLOAT: "TYPE_FP32",
    onnx.TensorProto.FLOAT16: "TYPE_FP16",
    onnx.TensorProto.BFLOAT16: "TYPE_BF16",
}


@dataclass(frozen=True)
class RepositoryOptions:
    """How Triton runs the parts."""

    name: str | None = None
    """Name of the ensemble; None for the model's with its precision."""
    max_batch: int = 8
    """Images that the encoder takes at once, at most; a TensorRT engine's own limit if that is smaller."""
    max_queue_delay_us: int = 2000
    """Microseconds that an image waits for others."""
    instances: int = 1
    """Copies of each part on each GPU, or on the processor."""


_DEFAULT = RepositoryOptions()


@dataclass(frozen=True)
class _Tensor:
    name: str
    type: str
    dims: Sequence[int]


def export_triton(model: Path, out: Path, options: RepositoryOptions = _DEFAULT) -> list[Path]:
    """Add a model to a Triton model repository.

    Args:
        model: An ONNX artifact, or an engine for ONNX Runtime or TensorRT.
        out: The repository; created if it does not exist.
        options: See `RepositoryOptions`.

    Returns:
        The directories of encoder, decoder and ensemble.

    Raises:
        InputError: ``model`` is no such artifact, or the repository has a model of the same name.
    """
    card = Card.verified(model)
    backend = _backend(model, card)
    name = options.name or f"{card.model}_{card.precision}"
    if not name.replace("_", "").replace("-", "").isalnum():
        raise InputError(f"{name!r} cannot be a model's name in Triton: use letters, digits, _ and -.")
    names = [f"{name}_encoder", f"{name}_decoder", name]
    if existing := next((n for n in names if (out / n).exists()), None):
        raise InputError(f"{out / existing} exists: delete it, or choose another name with --name.")
    configs = _configs(model, card, backend, names, options)
    out.mkdir(parents=True, exist_ok=True)
    # Beside the repository, which a running server may watch.
    with tempfile.TemporaryDirectory(dir=out.absolute().parent, prefix=".triton-") as scratch:
        for model_name, text in configs.items():
            (Path(scratch, model_name) / _VERSION).mkdir(parents=True)
            Path(scratch, model_name, CONFIG).write_text(text)
        suffix, file = _FILES[backend]
        for model_name, part in zip(names, ("encoder", "decoder"), strict=False):
            shutil.copyfile(model / f"{part}{suffix}", Path(scratch, model_name, _VERSION, file))
        for model_name in names:  # the ensemble last: it needs the others
            Path(scratch, model_name).rename(out / model_name)
    return [out / model_name for model_name in names]


def _backend(model: Path, card: Card) -> str:
    """Triton's backend for an artifact.

    Raises:
        InputError: It has none.
    """
    if card.refusal:
        raise InputError(f"{model} holds no model: {card.refusal.stage} refused it by {card.refusal}.")
    backend = {"onnx": "onnxruntime", "engine": str(card.load.get("engine"))}.get(card.kind)
    if backend not in _FILES:
        what = f"engine {backend!r}" if backend else f"kind {card.kind!r}"
        raise InputError(
            f"{model} is an artifact of {what}, which is not exported to Triton: give artifacts/quantize/STUDENT/"
            "PRECISION, or an engine for onnxruntime or tensorrt."
        )
    suffix = _FILES[backend][0]
    require_files(model, f"encoder{suffix}", f"decoder{suffix}", *((SIDECAR,) if backend == "tensorrt" else ()))
    return backend


def _configs(model: Path, card: Card, backend: str, names: Sequence[str], options: RepositoryOptions) -> dict[str, str]:
    """Text of each model's ``config.pbtxt``, by its name."""
    encoder, decoder, ensemble = names
    tensors, about = _tensors(model, card, backend), _parameters(model, card)
    max_batch = min(options.max_batch, _profile_batch(model)) if backend == "tensorrt" else options.max_batch
    head = [f"backend: {json.dumps(backend)}"]
    batching = f"dynamic_batching {{ max_queue_delay_microseconds: {options.max_queue_delay_us} }}"
    kind = "KIND_GPU" if backend == "tensorrt" else "KIND_AUTO"
    instances = f"instance_group [ {{ count: {options.instances} kind: {kind} }} ]"
    unbatched = {n: t for n, t in tensors.items() if n not in (*_ENCODER_INPUTS, *_ENCODER_OUTPUTS)}
    batched = {n: _Tensor(n, tensors[n].type, tensors[n].dims[1:]) for n in (*_ENCODER_INPUTS, *_ENCODER_OUTPUTS)}
    one = {n: _Tensor(n, tensors[n].type, (1, *tensors[n].dims[1:])) for n in (*_ENCODER_INPUTS, *_ENCODER_OUTPUTS)}
    whole = unbatched | one
    steps = [
        _step(encoder, {n: n for n in _ENCODER_INPUTS}, {n: n for n in _ENCODER_OUTPUTS}),
        _step(decoder, {n: n for n in _DECODER_INPUTS}, {n: n for n in _DECODER_OUTPUTS}),
    ]
    outer_inputs = (*_ENCODER_INPUTS, *_DECODER_INPUTS[1:])
    return {
        encoder: _config(
            encoder, head, max_batch, batched, _ENCODER_INPUTS, _ENCODER_OUTPUTS, [batching, instances, about]
        ),
        decoder: _config(decoder, head, 0, whole, _DECODER_INPUTS, _DECODER_OUTPUTS, [instances, about]),
        ensemble: _config(
            ensemble,
            ['platform: "ensemble"'],
            0,
            whole,
            outer_inputs,
            (*_DECODER_OUTPUTS, *_ENCODER_OUTPUTS),  # the embedding for further prompts on the same image
            [f"ensemble_scheduling {{\n  step [\n{','.join(steps)}\n  ]\n}}", about],
        ),
    }


def _tensors(model: Path, card: Card, backend: str) -> dict[str, _Tensor]:
    """All tensors of both files, with -1 for axes that vary."""
    _, side, grid = sizes(model, card)
    shapes: dict[str, tuple[int, ...]] = {
        "image": (-1, 3, side, side),
        "image_embedding": (-1, EMBEDDING_CHANNELS, grid, grid),
        "point_coords": (-1, -1, 2),
        "point_labels": (-1, -1),
        "mask_input": (-1, 1, 4 * grid, 4 * grid),
        "has_mask_input": (1,),
        "low_res_logits": (-1, 4, 4 * grid, 4 * grid),
        "iou_predictions": (-1, 4),
    }
    types = _onnx_types(model) if backend == "onnxruntime" else {}
    return {name: _Tensor(name, types.get(name, "TYPE_FP32"), shape) for name, shape in shapes.items()}


def _onnx_types(model: Path) -> dict[str, str]:
    """Triton's types of the inputs and outputs of both files.

    Raises:
        InputError: A type is not one of floating point.
    """
    types = dict[str, str]()
    for file in ("encoder.onnx", "decoder.onnx"):
        graph = onnx.load(model / file, load_external_data=False).graph
        for value in (*graph.input, *graph.output):
            kind = value.type.tensor_type.elem_type
            if kind not in _TYPES:
                raise InputError(f"{model / file}: {value.name} has type {kind}, which is no floating point type.")
            types[value.name] = _TYPES[kind]
    return types


class _Profile(BaseModel):
    """Least, usual and greatest number of images."""

    batch: Annotated[list[int], Field(min_length=3, max_length=3)]


class _Sidecar(BaseModel):
    """What is read of an engine's sidecar."""

    profile: _Profile


def _profile_batch(model: Path) -> int:
    """The largest batch of images that a TensorRT engine takes."""
    path, remedy = model / SIDECAR, "Rebuild the engine."
    content = json_file.load(path, _LARGEST_SIDECAR, remedy=remedy)
    return json_file.validated(content, _Sidecar, str(path), remedy=remedy).profile.batch[2]


def _parameters(model: Path, card: Card) -> str:
    """What a client needs for its frames, and which model it is."""
    image_size, input_size, embedding_size = sizes(model, card)
    values = {
        "model": str(card.model),
        "precision": str(card.precision),
        "digest": card.digest,
        "image_size": str(image_size),
        "input_size": str(input_size),
        "embedding_size": str(embedding_size),
    }
    lines = (
        f"parameters {{ key: {json.dumps(key)} value {{ string_value: {json.dumps(value)} }} }}"
        for key, value in values.items()
    )
    return "\n".join(lines)


def _config(
    name: str,
    head: Sequence[str],
    max_batch: int,
    tensors: Mapping[str, _Tensor],
    inputs: Sequence[str],
    outputs: Sequence[str],
    tail: Sequence[str],
) -> str:
    parts = [f"name: {json.dumps(name)}", *head, f"max_batch_size: {max_batch}"]
    parts += [f"input {_described(tensors[n])}" for n in inputs] + [f"output {_described(tensors[n])}" for n in outputs]
    return "\n".join([*parts, *tail]) + "\n"


def _described(tensor: _Tensor) -> str:
    dims = ", ".join(map(str, tensor.dims))
    return f"{{ name: {json.dumps(tensor.name)} data_type: {tensor.type} dims: [ {dims} ] }}"


def _step(model: str, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> str:
    lines = [f"      model_name: {json.dumps(model)}", "      model_version: -1"]
    for kind, names in (("input_map", inputs), ("output_map", outputs)):
        lines += [
            f"      {kind} {{ key: {json.dumps(own)} value: {json.dumps(outer)} }}" for own, outer in names.items()
        ]
    return "    {\n" + "\n".join(lines) + "\n    }"
