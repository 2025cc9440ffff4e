"""Train a student on ground truth masks with box and click prompts: its mask decoder, or encoder and decoder."""

import shutil
from pathlib import Path

from pipeline.align.config import AlignConfig
from pipeline.align.masks import align_masks
from pipeline.align.teacher import load_teacher
from pipeline.core import code
from pipeline.core.artifact import Card, Contents, write_metrics
from pipeline.core.device import device_of
from pipeline.core.distributed import joined
from pipeline.core.errors import InputError
from pipeline.core.log import Log
from pipeline.data.shards import Shards
from pipeline.models.sam import WEIGHTS, save_checkpoint
from pipeline.models.students import load_checkpoint, module_of
from pipeline.training import checkpoint_of, precision_of

__all__ = ["AlignConfig", "align"]


def align(
    config: AlignConfig | None,
    *,
    student: str,
    prepare: Path,
    teacher: Path,
    embed: Path,
    distill: Path,
    out: Path,
    log: Log,
) -> Contents:
    """Train a student's mask decoder, or encoder and decoder, on ground truth masks with box and click prompts.

    Args:
        config: Section ``align.<student>`` of params.yaml; null passes the distilled student on unchanged.
        student: Name of the student.
        prepare: The dataset.
        teacher: Checkpoint of the teacher; read only if ``teacher_weight`` is positive.
        embed: The teacher's embeddings; likewise. Files missing from the store are recomputed.
        distill: The student with a distilled encoder.
        out: Empty directory for the artifact.
        log: Receives the losses.

    Raises:
        InputError: An input is missing, damaged or of another student, or no train image has a mask.
        FloatingPointError: The loss is not finite.
    """
    card = Card.read(distill)
    if card.model != student:
        raise InputError(f"{distill} contains {card.model}, not {student}: run `dvc repro`.")
    if config is None:
        shutil.copyfile(distill / WEIGHTS, out / WEIGHTS)
        write_metrics(out, {})
        return Contents(kind="checkpoint", model=student, options=card.options, precision="fp32")
    device = device_of(config.device, f"align.{student}.device")
    images = Shards(prepare, "train")
    if not any(images.instances):
        raise InputError(
            f"{prepare} has no masks in its train split, which training the decoder needs: use a source with masks "
            "(`prepare.source` in params.yaml)."
        )
    sam = load_checkpoint(distill)
    used, modules, targets = [prepare, distill], [module_of(student)], None
    if config.teacher_weight:
        targets = load_teacher(teacher, embed, sam, student, prepare=prepare, batch=config.batch, device=device)
        used, modules = [*used, teacher, embed], [*modules, module_of(Card.read(teacher).model or "")]
    inputs = (Card.read(artifact).digest for artifact in used)
    digest = code.digest(__name__, *modules)
    precision = precision_of(device, config.optimizer.autocast)
    checkpoint = checkpoint_of(
        f"align-{student}", config.model_dump_json(exclude={"optimizer": {"num_workers"}}), precision, digest, *inputs
    )
    contents = Contents(kind="checkpoint", model=student, options=card.options, precision="fp32", scratch=(checkpoint,))
    with joined(device) as ranks:
        metrics = align_masks(sam, images, config, device=device, log=log, checkpoint=checkpoint, teacher=targets)
    if not ranks.first:
        return contents
    log(metrics)
    write_metrics(out, metrics)
    save_checkpoint(sam, out)
    return contents
