"""Bytes that each stage leaves, from the formats of its files."""

import configparser
import json
import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from pipeline.data.encoding import FEATURES, TENSOR
from pipeline.plan.rates import table
from pipeline.plan.workload import Scale, Workload, feature_shapes, model_size

_FP32, _FP16 = 4, 2
_TRAINING_COPIES = 4
"""Weights, their average and AdamW's two moments in a training's checkpoint."""
_LINKED = ("hardlink", "symlink")
_BYTES_PER_INSTANCE = 1024
"""Of an evaluation's json files, about."""
_ENCODER_BYTES = {"fp32": _FP32, "fp16": _FP16, "int8": 1, "int8_fp16": 1}
"""Per weight of the encoder; narrower precisions are stored as fp32."""


def bytes_of(work: Workload, scale: Scale) -> dict[str, int]:
    """Bytes by stage, DVC's cache included; ``data`` is what has to be there before.

    Embeddings, features and weights are exact; images are as large as their source's are on average.
    """
    copies = dvc_copies()
    teacher = model_size(work.teacher.name, work.teacher.options)
    checkpoint = teacher.parameters * _FP32 if work.teacher.checkpoint else 0
    weights = {s: model_size(s, work.distill[s].options) for s in work.students}
    whole = sum(size.parameters for size in weights.values()) * _FP32
    trained = [s for s in work.students if work.distill[s].recipe.kind != "pretrained"]
    training = sum(weights[s].parameters for s in trained) * _FP32 * _TRAINING_COPIES
    aligned = sum(weights[s].parameters for s in work.students if work.align[s]) * _FP32 * _TRAINING_COPIES
    models = sum(
        (size.encoder_parameters * _ENCODER_BYTES.get(precision, _FP32))
        + (size.parameters - size.encoder_parameters) * _FP32
        for size in weights.values()
        for precision in work.precisions
    )
    validation_images, instances = work.validation
    candidates = 1 + len(work.students) * len(work.precisions)
    return {
        "data": scale.bytes + work.validation_bytes + checkpoint,
        "prepare": copies * (_share(work, scale) + validation_images * table().image_bytes),
        "teacher": copies * teacher.parameters * _FP32,
        "embed": embedding_bytes(work, scale),
        "distill": copies * whole + training,
        "align": copies * whole + aligned,
        "export": copies * whole,
        "quantize": copies * models,
        "build_engine": copies * models,
        "evaluate": copies * candidates * instances * _BYTES_PER_INSTANCE,
    }


def embedding_bytes(work: Workload, scale: Scale) -> int:
    """Exact bytes of the store of embeddings, without the small json beside each file."""
    if work.embed is None:
        return 0
    shapes, per_shard, total = _shapes(work), work.prepare.shard_images, 0
    for images in (work.train_images(scale), work.calibration_images):
        full, rest = divmod(images, per_shard)
        total += full * safetensors_bytes(shapes, per_shard) + (safetensors_bytes(shapes, rest) if rest else 0)
    return total


def _shapes(work: Workload) -> dict[str, tuple[int, ...]]:
    """Shapes of one image's embedding and features by their names in the store."""
    teacher, layers = work.teacher, sorted(set(work.embed.feature_layers if work.embed else ()))
    shapes: dict[str, tuple[int, ...]] = {TENSOR: model_size(teacher.name, teacher.options).embedding_shape}
    features = feature_shapes(teacher.name, teacher.options, layers) if layers else {}
    return shapes | {FEATURES.format(layer): shape for layer, shape in features.items()}


def safetensors_bytes(shapes: Mapping[str, Sequence[int]], count: int) -> int:
    """Size of a safetensors file of fp16 tensors, each of ``count`` rows of a shape."""
    header, begin = dict[str, object](), 0
    for name in sorted(shapes):
        end = begin + _FP16 * count * math.prod(shapes[name])
        header[name] = {"dtype": "F16", "shape": [count, *shapes[name]], "data_offsets": [begin, end]}
        begin = end
    text = len(json.dumps(header, separators=(",", ":")))
    return 8 + -(-text // 8) * 8 + begin


def dvc_copies() -> int:
    """Copies of a stage's result: in the workspace and DVC's cache, or one where the cache is linked."""
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    with suppress(configparser.Error):
        parser.read([".dvc/config", ".dvc/config.local"])
    types = [name.strip() for name in parser.get("cache", "type", fallback="copy").split(",")]
    return 1 if types[0] in _LINKED else 2


def existing(path: Path) -> Path:
    """The path, or its closest parent that exists."""
    return next(parent for parent in (path.absolute(), *path.absolute().parents) if parent.exists())


def _share(work: Workload, scale: Scale) -> int:
    """Bytes of the source that `prepare` packs: rendered images are as small as they are few."""
    if not scale.images:
        return 0
    packed = work.train_images(scale) + work.calibration_images
    return round(scale.bytes * min(1.0, packed / scale.images))
