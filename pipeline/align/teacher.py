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
from pipeline.models.students import load_checkpoint


@dataclass(frozen=True)
class Teacher:
    """A frozen decoder and the embeddings it reads."""

    sam: Sam
    """Without its image encoder."""
    embeddings: Embeddings


def load_teacher(teacher: Path, embed: Path, *, prepare: Path, batch: int, device: torch.device) -> Teacher:
    """Load the teacher's decoder, and recompute embeddings that are missing from the store.

    Args:
        teacher: The teacher's checkpoint.
        embed: Its embeddings.
        prepare: Their dataset.
        batch: Images encoded at once.
        device: Device of the decoder.

    Raises:
        InputError: The embeddings are another teacher's or cannot be recomputed.
    """
    embeddings = Embeddings(embed)
    if embeddings.teacher != Card.read(teacher).digest:
        raise InputError(f"{embed} was computed by a different teacher than {teacher}: run `dvc repro embed`.")
    refill(embeddings, prepare=prepare, teacher=teacher, batch=batch, device=device)
    sam = load_checkpoint(teacher).requires_grad_(False)
    sam.image_encoder = nn.Identity()  # frees ViT-H's 2.4 GiB, since only the decoder runs
    return Teacher(sam.to(device).eval(), embeddings)
