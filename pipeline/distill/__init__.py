"""Distill a teacher into a student with one of the published recipes, or take a student's published weights."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import torch

from pipeline.core import code
from pipeline.core.artifact import Card, Contents, write_metrics
from pipeline.core.bundled import PREFIX, directory_of
from pipeline.core.device import device_of
from pipeline.core.distributed import joined
from pipeline.core.errors import InputError
from pipeline.core.log import Log
from pipeline.data.embeddings import Embeddings
from pipeline.data.filling import refill
from pipeline.data.shards import Shards
from pipeline.distill.config import BUNDLED, DistillConfig, PretrainedRecipe
from pipeline.distill.embedding import distill_embeddings, held_out_error
from pipeline.distill.full_stage import distill_full_stage
from pipeline.distill.layer_wise import distill_layer_wise
from pipeline.distill.prompt_in_the_loop import distill_prompt_in_the_loop
from pipeline.distill.task import Task
from pipeline.models import build
from pipeline.models.pretrained import Source, load_pretrained
from pipeline.models.sam import Sam, load_state, save_checkpoint
from pipeline.models.students import copy_decoder, load_checkpoint, module_of, require_same_grid
from pipeline.training import checkpoint_of, precision_of

__all__ = ["RECIPES", "DistillConfig", "Task", "distill", "learn", "student_of"]

RECIPES: Mapping[str, Callable[[Task, Any], None]] = {
    "embedding": distill_embeddings,
    "full_stage": distill_full_stage,
    "layer_wise": distill_layer_wise,
    "prompt_in_the_loop": distill_prompt_in_the_loop,
}
"""Training function of each recipe's ``kind``, except ``pretrained``, which trains nothing."""


def distill(
    config: DistillConfig, *, student: str, prepare: Path, teacher: Path, embed: Path, out: Path, log: Log
) -> Contents:
    """Distill a teacher into a student with one of the published recipes, or take a student's published weights.

    Args:
        config: Section ``distill.<student>`` of params.yaml.
        student: Name of the student.
        prepare: The dataset.
        teacher: Checkpoint whose prompt encoder and mask decoder are copied to a student without its own.
        embed: The teacher's embeddings. Files missing from the store, as in another checkout, are recomputed.
        out: Empty directory for the artifact.
        log: Receives the loss during training, and the error on held-out images.

    Raises:
        InputError: Teacher and student have different sizes, an input is damaged, or a feature layer is not cached.
        FloatingPointError: The loss is not finite.
    """
    if isinstance(config.recipe, PretrainedRecipe):
        contents = Contents(kind="checkpoint", model=student, options=config.options, precision="fp32")
        save_checkpoint(pretrained(config.recipe, teacher, student, config.options), out)
        write_metrics(out, {})
        return contents
    device = device_of(config.device, f"distill.{student}.device")
    embeddings = Embeddings(embed)
    source = Card.read(teacher)
    if embeddings.teacher != source.digest:
        raise InputError(f"{embed} was computed by a different teacher than {teacher}: run `dvc repro embed`.")
    if not embeddings.shards:
        raise InputError(f"{embed} holds no embeddings, since section embed is null: distillation needs them.")
    refill(embeddings, prepare=prepare, teacher=teacher, batch=config.batch, device=device)
    digest = code.digest(__name__, module_of(student), module_of(source.model or ""))
    inputs = [Card.read(artifact).digest for artifact in (prepare, teacher, embed)]
    if config.init == BUNDLED:
        inputs.append(Card.read(directory_of(f"{PREFIX}{student}")).digest)
    precision = precision_of(device, config.training.autocast)
    checkpoint = checkpoint_of(
        f"distill-{student}", config.model_dump_json(exclude={"optimizer": {"num_workers"}}), precision, digest, *inputs
    )
    task = Task(
        sam=student_of(teacher, student, config.training.seed, config.options, config.init),
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


def pretrained(recipe: PretrainedRecipe, teacher: Path, student: str, options: Mapping[str, Any]) -> Sam:
    """Build a student with published weights; an image encoder alone gets its teacher's decoder.

    Raises:
        InputError: The weights are missing, damaged or another model's, or the sizes differ from the teacher's whose
            decoder is needed.
    """
    sam = build(student, options)
    if load_pretrained(sam, student, recipe, f"distill.{student}.recipe") == "image_encoder":
        _copy_decoder(teacher, student, sam)
    return sam


def student_of(
    teacher: Path, student: str, seed: int, options: Mapping[str, Any], init: Source | Literal["bundled"] | None = None
) -> Sam:
    """Build a student with its teacher's prompt encoder and mask decoder, and random or ``init`` weights.

    Raises:
        InputError: The student has no such option, its embedding or image size differs from the teacher's, or the
            initial weights are missing, damaged or another model's.
    """
    sam = build(student, options, seed=seed)
    _copy_decoder(teacher, student, sam)
    if init == BUNDLED:
        source = directory_of(f"{PREFIX}{student}")
        own = Card.read(source).options.get("teacher")
        if options.get("teacher") != own:
            raise InputError(
                f"distill.{student}.init is bundled, but the bundled student is of the teacher {own}: set "
                f"distill.{student}.options.teacher to {own}."
            )
        encoder = load_checkpoint(source).image_encoder.state_dict()
        load_state(sam, {**sam.state_dict(), **{f"image_encoder.{key}": encoder[key] for key in encoder}}, source)
    elif isinstance(init, Source):
        load_pretrained(sam, student, init, f"distill.{student}.init")
    return sam


def _copy_decoder(teacher: Path, student: str, sam: Sam) -> None:
    """Copy the prompt encoder and mask decoder of the teacher to ``sam``.

    Raises:
        InputError: The student's embedding or image size differs from the teacher's.
    """
    card = Card.read(teacher)
    source = load_checkpoint(teacher)
    require_same_grid(sam, student, source, card.model or "")
    copy_decoder(source, sam)
