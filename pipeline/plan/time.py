"""Seconds that each stage takes, from what its parameters ask for and the table of rates."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pipeline.align import AlignConfig
from pipeline.core.errors import InputError
from pipeline.distill import DistillConfig
from pipeline.distill.config import FullStageRecipe, PromptInTheLoopRecipe
from pipeline.plan.rates import Used, table
from pipeline.plan.workload import Scale, Workload, model_size
from pipeline.stages import STAGES

DISTRIBUTED = frozenset(stage.name for stage in STAGES if stage.distributed)
"""Stages that share their work among GPUs."""
_DECODES_PER_INSTANCE = 10
"""Of an evaluation: a box, five clicks, and two of them again with the mask before."""
_DECODES_EVERYTHING = 1024 + 300
"""Of one image, both modes together: all points, and those that the hierarchical mode takes."""


@dataclass(frozen=True)
class Machine:
    """What computes."""

    gpus: int
    cores: int


class Clock:
    """Seconds by stage.

    Args:
        work: What is computed.
        machine: On what.
        used: Records the rates.
    """

    def __init__(self, work: Workload, machine: Machine, used: Used) -> None:
        self.work, self.machine, self.rate = work, machine, used
        self.refusals = list[str]()
        """Why a stage cannot run at a scale."""

    def seconds(self, scale: Scale) -> dict[str, float | None]:
        """Seconds by stage; None for one that cannot run on so few images."""
        work, students = self.work, self.work.students
        aligned = {student: config for student in students if (config := work.align[student])}
        return {
            "prepare": self._prepare(scale),
            "embed": self._embed(scale),
            "distill": self._unless_refused(
                "distill", scale, lambda: math.fsum(self._distill(s, work.distill[s], scale) for s in students)
            ),
            "align": self._unless_refused(
                "align", scale, lambda: math.fsum(self._align(s, config, scale) for s, config in aligned.items())
            ),
            "export": len(students) * self.rate("cpu.export"),
            "quantize": math.fsum(self._quantize(student) for student in students),
            "build_engine": len(students) * len(work.precisions) * self._build(),
            "evaluate": self._evaluate(),
        }

    def _unless_refused(self, stage: str, scale: Scale, seconds: Callable[[], float]) -> float | None:
        try:
            return seconds()
        except InputError as error:
            self.refusals.append(f"{scale.name}: {stage} cannot run: {error}")
            return None

    def _on_gpu(self, device: str) -> bool:
        return self.machine.gpus > 0 and device.startswith(("cuda", "auto"))

    def _gpus(self, stage: str) -> int:
        return self.machine.gpus if stage in DISTRIBUTED else 1

    def _encode(self, name: str, options: dict[str, Any], *, gpu: bool) -> float:
        """Seconds of one image's encoding on one GPU, or on all cores."""
        own = f"{'gpu' if gpu else 'cpu'}.encoder.{name}"
        if own in table().rates:
            images_per_s = self.rate(own)
        else:
            images_per_s = (
                self.rate(f"{'gpu' if gpu else 'cpu'}.encoder_gmacs") / model_size(name, options).encoder_gmacs
            )
        return 1 / images_per_s / (1 if gpu else self.machine.cores)

    def _decode(self, name: str, options: dict[str, Any], *, gpu: bool) -> float:
        """Seconds of one prompt's decoding on one GPU, or on all cores."""
        gmacs = model_size(name, options).decoder_gmacs
        return gmacs / self.rate(f"{'gpu' if gpu else 'cpu'}.decoder_gmacs") / (1 if gpu else self.machine.cores)

    def _prepare(self, scale: Scale) -> float:
        images = scale.images + self.work.validation[0]
        return images / (self.rate("cpu.prepare") * self.machine.cores)

    def _embed(self, scale: Scale) -> float:
        config, teacher = self.work.embed, self.work.teacher
        if config is None:
            return 0.0
        gpu, images = self._on_gpu(config.device), self.work.train_images(scale) + self.work.calibration_images
        compute = self._encode(teacher.name, teacher.options, gpu=gpu) / (self._gpus("embed") if gpu else 1)
        reading = 1 / (self.rate("cpu.read") * self.machine.cores) if scale.bytes else 0.0
        return images * max(compute, reading)

    def _distill(self, student: str, config: DistillConfig, scale: Scale) -> float:
        recipe = config.recipe
        if config.optimizer is None:
            return 0.0
        gpu = self._on_gpu(config.device)
        images = config.batch * config.optimizer.total_steps(self.work.train_images(scale), config.batch)
        factor = self.rate("gpu.training" if gpu else "cpu.training")
        compute = factor * self._encode(student, config.options, gpu=gpu)
        loading = "cpu.loading.embedding"
        if isinstance(recipe, FullStageRecipe | PromptInTheLoopRecipe):
            rounds = recipe.rounds if isinstance(recipe, FullStageRecipe) else recipe.loops - 1
            # The teacher's decoding, and the student's of each round; only the last one is trained.
            decodes = recipe.prompts * (2 * rounds + 1 + factor)
            compute += decodes * self._decode(student, config.options, gpu=gpu)
            loading = "cpu.loading.full_stage"
        return images * self._limit("distill", compute, loading, scale, gpu=gpu)

    def _align(self, student: str, config: AlignConfig, scale: Scale) -> float:
        gpu, options = self._on_gpu(config.device), self.work.distill[student].options
        images = config.batch * config.optimizer.total_steps(self.work.train_images(scale), config.batch)
        factor = self.rate("gpu.training" if gpu else "cpu.training")
        encode = self._encode(student, options, gpu=gpu) * (factor if config.train == "all" else 1)
        if config.keep_embeddings:
            encode *= min(1.0, self.work.train_images(scale) / images)
        compute = encode + config.masks * factor * self._decode(student, options, gpu=gpu)
        return images * self._limit("align", compute, "cpu.loading.align", scale, gpu=gpu)

    def _limit(self, stage: str, compute: float, loading: str, scale: Scale, *, gpu: bool) -> float:
        """Seconds per image of a training: the slower of computing and drawing."""
        drawing = 1 / (self.rate(loading) * self.machine.cores) if scale.bytes else 0.0
        return max(compute / (self._gpus(stage) if gpu else 1), drawing)

    def _quantize(self, student: str) -> float:
        config, options = self.work.quantize, self.work.distill[student].options
        quantized = [p for p in self.work.precisions if p not in ("fp32", "fp16")]
        if not quantized:
            return 0.0
        images = config.calibration_images + config.holdout_images + config.sensitivity_images
        passes = self.rate(f"cpu.quantize.{config.method}")
        return len(quantized) * images * passes * self._encode(student, options, gpu=False)

    def _build(self) -> float:
        return self.rate(
            "gpu.build_engine.tensorrt" if self.work.build_engine.engine == "tensorrt" else "cpu.build_engine"
        )

    def _evaluate(self) -> float:
        """The teacher, and each candidate; engines for processors are evaluated there."""
        device = str(getattr(self.work.evaluate, "device", "cpu"))
        teacher = self.work.teacher
        seconds = self._evaluate_one(teacher.name, teacher.options, gpu=self._on_gpu(device))
        gpu = self.work.build_engine.engine == "tensorrt" and self.machine.gpus > 0
        for student in self.work.students:
            one = self._evaluate_one(student, self.work.distill[student].options, gpu=gpu)
            seconds += len(self.work.precisions) * one
        return seconds

    def _evaluate_one(self, name: str, options: dict[str, Any], *, gpu: bool) -> float:
        images, instances = self.work.validation
        encode, decode = self._encode(name, options, gpu=gpu), self._decode(name, options, gpu=gpu)
        host = instances * self.rate("cpu.evaluate.instance") / self.machine.cores
        seconds = images * encode + instances * _DECODES_PER_INSTANCE * decode
        if self.work.evaluate.everything is not None:
            seconds += self.work.evaluate.everything.images * (2 * encode + _DECODES_EVERYTHING * decode)
        return host + seconds / (self._gpus("evaluate") if gpu else 1)
