"""Teach a student's image encoder the teacher's image embeddings."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.artifact import Card, Contents, write_metrics
from pipeline.data.embeddings import Embeddings
from pipeline.data.shards import Shards
from pipeline.distill.config import DistillConfig
from pipeline.distill.embedding import distill_embeddings, held_out_error
from pipeline.errors import InputError
from pipeline.log import Log
from pipeline.models import build
from pipeline.models.sam import WEIGHTS, Sam, load_weights, save_checkpoint
from pipeline.ranks import joined
from pipeline.training import checkpoint_of, code_digest, device_of, precision_of

__all__ = ["DistillConfig", "distill"]


def distill(
    config: DistillConfig, *, student: str, prepare: Path, teacher: Path, embed: Path, out: Path, log: Log
) -> Contents:
    """Teach a student's image encoder the teacher's image embeddings.

    Args:
        config: Section ``distill.<student>`` of params.yaml.
        student: Name of the student.
        prepare: The dataset.
        teacher: Gives its prompt encoder and mask decoder.
        embed: The teacher's embeddings.
        out: Empty directory for the artifact.
        log: Gets the loss while it learns, and the error on held-out images.

    Raises:
        InputError: Teacher and student do not fit, or an input is damaged.
        FloatingPointError: The loss is not finite.
    """
    device = device_of(config.device, f"distill.{student}.device")
    embeddings = Embeddings(embed)
    if embeddings.teacher != Card.read(teacher).digest:
        raise InputError(f"{embed} was made by another teacher than the one in {teacher}: run `dvc repro embed`.")
    sam = student_of(teacher, student, config.optimizer.seed, config.options)
    inputs = (Card.read(need).digest for need in (prepare, teacher, embed))
    precision = precision_of(device, config.optimizer.autocast)
    checkpoint = checkpoint_of(f"distill-{student}", config.model_dump_json(), precision, code_digest(), *inputs)
    with joined(device) as ranks:
        images = Shards(prepare, "train")
        distill_embeddings(sam, images, embeddings, config, device=device, log=log, checkpoint=checkpoint)
    contents = Contents(kind="checkpoint", model=student, options=config.options, precision="fp32")
    if not ranks.first:
        return contents
    metrics = held_out_error(sam, Shards(prepare, "calibration"), embeddings, config, device=device)
    log(metrics)
    write_metrics(out, metrics)
    save_checkpoint(sam, out)
    checkpoint.unlink(missing_ok=True)
    return contents


def student_of(teacher: Path, student: str, seed: int, options: Mapping[str, Any]) -> Sam:
    """A fresh student with its teacher's prompt encoder and mask decoder.

    Raises:
        InputError: The student takes no such options, or the two have image embeddings or prompt frames of different
            sizes.
    """
    name = Card.read(teacher).model or ""
    source, sam = build(name), build(student, options, seed=seed)
    ours, theirs = (f"{m.embedding_size}x{m.embedding_size} cells of {m.image_size} pixels" for m in (sam, source))
    if ours != theirs:
        raise InputError(
            f"student {student} has an image embedding of {ours}, its teacher {name} one of {theirs}: "
            "choose nano students with the bundled teacher, full-size ones with vit_b, vit_l or vit_h (params.yaml)."
        )
    load_weights(source, teacher / WEIGHTS)
    sam.prompt_encoder.load_state_dict(source.prompt_encoder.state_dict())
    sam.mask_decoder.load_state_dict(source.mask_decoder.state_dict())
    return sam
