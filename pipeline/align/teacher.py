"""The teacher's masks as targets of ``align``: its decoder on cached embeddings; its encoder does not run."""

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from pipeline.core.artifact import Card
from pipeline.core.errors import InputError
from pipeline.data.embeddings import Embeddings
from pipeline.data.filling import refill
from pipeline.models.sam import Sam
from pipeline.models.students import load_checkpoint, require_same_grid


@dataclass(frozen=True)
class Teacher:
    """A frozen decoder and the embeddings it reads."""

    sam: Sam
    """Without its image encoder."""
    embeddings: Embeddings


def load_teacher(
    teacher: Path, embed: Path, student: Sam, name: str, *, prepare: Path, batch: int, device: torch.device
) -> Teacher:
    """Load the teacher's decoder, and recompute embeddings that are missing from the store.

    Args:
        teacher: The teacher's checkpoint.
        embed: Its embeddings.
        student: The student, whose embedding must have the teacher's size.
        name: The student's name.
        prepare: Their dataset.
        batch: Images encoded at once.
        device: Device of the decoder.

    Raises:
        InputError: The embeddings are another teacher's, absent or cannot be recomputed, or the student is of another
            size.
    """
    embeddings, card = Embeddings(embed), Card.read(teacher)
    if embeddings.teacher != card.digest:
        raise InputError(f"{embed} was computed by a different teacher than {teacher}: run `dvc repro embed`.")
    if not embeddings.shards:
        raise InputError(f"{embed} holds no embeddings, since section embed is null: set it, or teacher_weight to 0.")
    sam = load_checkpoint(teacher).requires_grad_(False)
    require_same_grid(student, name, sam, card.model or "")
    refill(embeddings, prepare=prepare, teacher=teacher, batch=batch, device=device)
    sam.image_encoder = nn.Identity()  # frees ViT-H's 2.4 GiB, since only the decoder runs
    return Teacher(sam.to(device).eval(), embeddings)
