"""Distill a teacher into a student with one of the published recipes."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pipeline.core import code
from pipeline.core.artifact import Card, Contents, write_metrics
from pipeline.core.device import device_of
from pipeline.core.distributed import joined
from pipeline.core.errors import InputError
from pipeline.core.log import Log
from pipeline.data.embeddings import Embeddings
from pipeline.data.filling import refill
from pipeline.data.shards import Shards
from pipeline.distill.config import DistillConfig
from pipeline.distill.embedding import distill_embeddings, held_out_error
from pipeline.distill.full_stage import distill_full_stage
from pipeline.distill.layer_wise import distill_layer_wise
from pipeline.distill.task import Task
from pipeline.models import build
from pipeline.models.sam import WEIGHTS, Sam, load_weights, save_checkpoint
from pipeline.models.students import module_of
from pipeline.training import checkpoint_of, precision_of

__all__ = ["RECIPES", "DistillConfig", "Task", "distill", "learn", "student_of"]

RECIPES: Mapping[str, Callable[[Task, Any], None]] = {
    "embedding": distill_embeddings,
    "full_stage": distill_full_stage,
    "layer_wise": distill_layer_wise,
}
"""Training function of each recipe's ``kind``."""


def distill(
    config: DistillConfig, *, student: str, prepare: Path, teacher: Path, embed: Path, out: Path, log: Log
) -> Contents:
    """Distill a teacher into a student with one of the published recipes.

    Args:
        config: Section ``distill.<student>`` of params.yaml.
        student: Name of the student.
        prepare: The dataset.
        teacher: Checkpoint whose prompt encoder and mask decoder are copied to the student.
        embed: The teacher's embeddings. Files missing from the store, as in another checkout, are recomputed.
        out: Empty directory for the artifact.
        log: Receives the loss during training, and the error on held-out images.

    Raises:
        InputError: Teacher and student have different sizes, an input is damaged, or a feature layer is not cached.
        FloatingPointError: The loss is not finite.
    """
    device = device_of(config.device, f"distill.{student}.device")
    embeddings = Embeddings(embed)
    source = Card.read(teacher)
    if embeddings.teacher != source.digest:
        raise InputError(f"{embed} was computed by a different teacher than {teacher}: run `dvc repro embed`.")
    refill(embeddings, prepare=prepare, teacher=teacher, batch=config.batch, device=device)
    digest = code.digest(__name__, module_of(student), module_of(source.model or ""))
    inputs = (Card.read(artifact).digest for artifact in (prepare, teacher, embed))
    precision = precision_of(device, config.optimizer.autocast)
    checkpoint = checkpoint_of(f"distill-{student}", config.model_dump_json(), precision, digest, *inputs)
    task = Task(
        sam=student_of(teacher, student, config.optimizer.seed, config.options),
        teacher=teacher,
        images=Shards(prepare, "train"),
        embeddings=embeddings,
        config=config,
        device=device,
        log=log,
        checkpoint=checkpoint,
    )
    with joined(device) as ranks:
        learn(task)
    contents = Contents(
        kind="checkpoint", model=student, options=config.options, precision="fp32", scratch=(checkpoint,)
    )
    if not ranks.first:
        return contents
    metrics = held_out_error(replace(task, images=Shards(prepare, "calibration")))
    log(metrics)
    write_metrics(out, metrics)
    save_checkpoint(task.sam, out)
    return contents


def learn(task: Task) -> None:
    """Train ``task.sam`` in place with its recipe.

    Raises:
        InputError: The recipe names a block that does not exist or is not cached.
    """
    task.sam.to(task.device)
    task.sam.image_encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]  # torch's stubs lack it
    RECIPES[task.config.recipe.kind](task, task.config.recipe)
    task.sam.to("cpu")


def student_of(teacher: Path, student: str, seed: int, options: Mapping[str, Any]) -> Sam:
    """Build a student with random encoder weights and its teacher's prompt encoder and mask decoder.

    Raises:
        InputError: The student has no such option, or its embedding or image size differs from the teacher's.
    """
    name = Card.read(teacher).model or ""
    source, sam = build(name), build(student, options, seed=seed)
    size, expected = (f"{m.embedding_size}x{m.embedding_size} cells of {m.image_size} pixels" for m in (sam, source))
    if size != expected:
        raise InputError(
            f"student {student} has an image embedding of {size}, but its teacher {name} has {expected}: "
            "choose nano students with the bundled teacher, full-size ones with vit_b, vit_l or vit_h (params.yaml)."
        )
    load_weights(source, teacher / WEIGHTS)
    sam.prompt_encoder.load_state_dict(source.prompt_encoder.state_dict())
    sam.mask_decoder.load_state_dict(source.mask_decoder.state_dict())
    return sam
