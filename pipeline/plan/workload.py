"""What a preset asks for, read through the Configs of its stages."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from pipeline.align import AlignConfig
from pipeline.build_engine import BuildEngineConfig
from pipeline.core.config import section
from pipeline.core.errors import InputError
from pipeline.core.stage import listed
from pipeline.distill import DistillConfig
from pipeline.embed import EmbedConfig
from pipeline.evaluate import EvaluateConfig
from pipeline.models import build
from pipeline.models.cost import count_parameters, macs
from pipeline.models.feature_layers import captured_features
from pipeline.models.sam import EMBEDDING_CHANNELS, Sam
from pipeline.plan.rates import table
from pipeline.prepare import PrepareConfig
from pipeline.prepare.sources import Files, Procedural, Sa1b
from pipeline.quantize.config import QuantizeConfig
from pipeline.teacher import TeacherConfig


@dataclass(frozen=True)
class Scale:
    """A number of images, and its name in the report."""

    name: str
    images: int
    bytes: int
    """Of the images and masks before `prepare`."""


@dataclass(frozen=True)
class Workload:
    """The sections of params.yaml that decide time and disk."""

    students: list[str]
    precisions: list[str]
    prepare: PrepareConfig
    teacher: TeacherConfig
    embed: EmbedConfig | None
    distill: Mapping[str, DistillConfig]
    align: Mapping[str, AlignConfig | None]
    quantize: QuantizeConfig
    build_engine: BuildEngineConfig
    evaluate: EvaluateConfig

    @property
    def calibration_images(self) -> int:
        """Images of the calibration split, which are embedded, too."""
        source = self.prepare.source
        return source.calibration if isinstance(source, Procedural) else source.calibration_images

    @property
    def uses_gpu(self) -> bool:
        """Whether it is meant for GPUs: it names one, or ``auto`` has the work of a full-size teacher."""
        trained = (config for config in self.distill.values() if config.optimizer)
        sections = (self.embed, *trained, *self.align.values())
        devices = {config.device.partition(":")[0] for config in sections if config}
        full_size = "auto" in devices and self.teacher.name.startswith("vit_")
        return full_size or "cuda" in devices or self.build_engine.engine == "tensorrt"

    def train_images(self, scale: Scale) -> int:
        """Images of the train split."""
        source = self.prepare.source
        if isinstance(source, Procedural):
            return source.train
        own = 0 if source.validation else source.validation_images
        left = max(0, scale.images - self.calibration_images - own)
        return left if source.train_images is None else min(left, source.train_images)

    @property
    def validation(self) -> tuple[int, int]:
        """Images and instances that are evaluated on, those of sets of unknown size as 500 images."""
        source = self.prepare.source
        if isinstance(source, Procedural):
            return source.validation, 7 * source.validation
        if not source.validation:
            return source.validation_images, 100 * source.validation_images
        images = instances = 0
        for chosen in source.validation.values():
            size = table().sets.get(Path(chosen.annotations).name)
            listed_images = size.images if size else 500
            count = min(listed_images, chosen.max_images or listed_images)
            images += count
            instances += round(count * (size.instances / size.images if size else 7))
        return images, instances

    @property
    def validation_bytes(self) -> int:
        """Of the files of validation sets whose size is known."""
        source = self.prepare.source
        chosen = source.validation.values() if isinstance(source, Files) else ()
        return sum(size.bytes for s in chosen if (size := table().sets.get(Path(s.annotations).name)))

    def scales(self, images: int | None) -> list[Scale]:
        """One tar, 1 % and 100 % of SA-1B; for other sources their own images.

        Args:
            images: Number of images instead.

        Raises:
            InputError: The source's number of images is not known.
        """
        whole, source = table().sa1b, self.prepare.source
        mean = whole.bytes / whole.images
        if images is not None:
            per_image = mean if isinstance(source, Sa1b) else table().image_bytes
            return [Scale(f"{images:,} images", images, round(images * per_image))]
        if isinstance(source, Sa1b):
            counts = {"1 tar": whole.images // whole.tars, "1 %": whole.images // 100, "100 %": whole.images}
            return [Scale(name, count, round(count * mean)) for name, count in counts.items()]
        if isinstance(source, Procedural):
            count = source.train + source.calibration + source.validation
            return [Scale(f"{count:,} images", count, 0)]
        folder = Path(self.prepare.data, source.images)
        if not folder.is_dir():
            raise InputError(f"{folder} does not exist, so its images cannot be counted: add --images NUMBER.")
        files = [path for path in folder.rglob("*") if path.is_file()]
        return [Scale(f"{len(files):,} images", len(files), sum(path.stat().st_size for path in files))]


def read(params: Mapping[str, Any], file: Path) -> Workload:
    """Read a preset.

    Raises:
        InputError: A section is missing or wrong.
    """
    students = listed(params, "students")

    def of(name: str, model: Any) -> Any:
        return section(params, name, model, file)

    embed = None if params.get("embed") is None else of("embed", EmbedConfig)
    aligned = params.get("align") or {}
    return Workload(
        students=students,
        precisions=listed(params, "precisions"),
        prepare=of("prepare", PrepareConfig),
        teacher=of("teacher", TeacherConfig),
        embed=embed,
        distill={student: of(f"distill.{student}", DistillConfig) for student in students},
        align={s: None if aligned.get(s) is None else of(f"align.{s}", AlignConfig) for s in students},
        quantize=of("quantize", QuantizeConfig),
        build_engine=of("build_engine", BuildEngineConfig),
        evaluate=of("evaluate", EvaluateConfig),
    )


@dataclass(frozen=True)
class ModelSize:
    """Cost and extent of a model."""

    encoder_gmacs: float
    decoder_gmacs: float
    """Of one prompt."""
    parameters: int
    encoder_parameters: int
    embedding_shape: tuple[int, int, int]
    """Of one image's embedding."""


def model_size(name: str, options: Mapping[str, Any]) -> ModelSize:
    """Count a model that is built without memory for its weights.

    Args:
        name: A model of the table.
        options: Keyword arguments of its builder.
    """
    return _model_size(name, json.dumps(options, sort_keys=True))


def feature_shapes(name: str, options: Mapping[str, Any], layers: Sequence[int]) -> dict[int, tuple[int, ...]]:
    """Shapes of one image's features by block."""
    sam = _on_meta(name, json.dumps(options, sort_keys=True))
    with torch.inference_mode(), captured_features(sam.image_encoder, layers) as features:
        sam.image_encoder(torch.empty(1, 3, sam.input_size, sam.input_size, device="meta"))
    return {layer: tuple(features[layer].shape[1:]) for layer in layers}


@cache
def _model_size(name: str, options: str) -> ModelSize:
    sam = _on_meta(name, options)
    cost = macs(sam)
    return ModelSize(
        encoder_gmacs=cost["encoder"] / 1e9,
        decoder_gmacs=cost["decoder_per_prompt"] / 1e9,
        parameters=count_parameters(sam),
        encoder_parameters=count_parameters(sam.image_encoder),
        embedding_shape=(EMBEDDING_CHANNELS, sam.embedding_size, sam.embedding_size),
    )


@cache
def _on_meta(name: str, options: str) -> Sam:
    with torch.device("meta"):
        return build(name, json.loads(options)).eval()
