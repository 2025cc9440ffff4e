"""The models by name. A new student is a module of its own and a line here; contract tests run over the table."""

from collections.abc import Callable, Mapping
from pathlib import Path

import torch

from pipeline.artifact import Card
from pipeline.errors import InputError
from pipeline.models.bundled import bundled
from pipeline.models.efficientvit_sam import (
    efficientvit_sam_l0,
    efficientvit_sam_l1,
    efficientvit_sam_l2,
    efficientvit_sam_nano,
    efficientvit_sam_xl0,
    efficientvit_sam_xl1,
)
from pipeline.models.sam import WEIGHTS, Sam, load_weights
from pipeline.models.vit import vit_b, vit_h, vit_l

STUDENTS: Mapping[str, Callable[[], Sam]] = {
    "efficientvit_sam_nano": efficientvit_sam_nano,
    "efficientvit_sam_l0": efficientvit_sam_l0,
    "efficientvit_sam_l1": efficientvit_sam_l1,
    "efficientvit_sam_l2": efficientvit_sam_l2,
    "efficientvit_sam_xl0": efficientvit_sam_xl0,
    "efficientvit_sam_xl1": efficientvit_sam_xl1,
}

TEACHERS: Mapping[str, Callable[[], Sam]] = {
    "bundled": bundled,
    "vit_b": vit_b,
    "vit_l": vit_l,
    "vit_h": vit_h,
}


def build(name: str, *, seed: int = 0) -> Sam:
    """A student or a teacher by name, with fresh weights, in training mode.

    Args:
        name: A key of `STUDENTS` or `TEACHERS`.
        seed: Decides the fresh weights alone; torch's global random state is left as it was.

    Raises:
        InputError: No model has this name.
    """
    builders = {**STUDENTS, **TEACHERS}
    if name not in builders:
        raise InputError(f"No model is called {name!r}. Known: {', '.join(builders)}.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return builders[name]()


def load_checkpoint(directory: Path) -> Sam:
    """The model of a checkpoint artifact, in evaluation mode.

    Raises:
        InputError: ``directory`` is no checkpoint, or its weights are damaged or another model's.
    """
    card = Card.read(directory)
    if card.kind != "checkpoint" or card.model is None:
        raise InputError(f"{directory} is an artifact of kind {card.kind!r}, not a checkpoint.")
    return load_weights(build(card.model), directory / WEIGHTS).eval()
