"""The models by name. A new student is a module of its own and a line here; contract tests run over the table."""

import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

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
from pipeline.models.sam_lightening import sam_lightening, sam_lightening_nano
from pipeline.models.tinysam import tinysam, tinysam_nano
from pipeline.models.vit import vit_b, vit_h, vit_l

STUDENTS: Mapping[str, Callable[..., Sam]] = {
    "efficientvit_sam_nano": efficientvit_sam_nano,
    "efficientvit_sam_l0": efficientvit_sam_l0,
    "efficientvit_sam_l1": efficientvit_sam_l1,
    "efficientvit_sam_l2": efficientvit_sam_l2,
    "efficientvit_sam_xl0": efficientvit_sam_xl0,
    "efficientvit_sam_xl1": efficientvit_sam_xl1,
    "tinysam_nano": tinysam_nano,
    "tinysam": tinysam,
    "sam_lightening_nano": sam_lightening_nano,
    "sam_lightening": sam_lightening,
}

TEACHERS: Mapping[str, Callable[..., Sam]] = {
    "bundled": bundled,
    "vit_b": vit_b,
    "vit_l": vit_l,
    "vit_h": vit_h,
}


_NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})


def build(name: str, options: Mapping[str, Any] = _NO_OPTIONS, *, seed: int = 0) -> Sam:
    """A student or a teacher by name, with fresh weights, in training mode.

    Args:
        name: A key of `STUDENTS` or `TEACHERS`.
        options: Arguments of its builder by name: choices that decide what it computes. They come from the student's
            section of params.yaml and are kept on the cards of all that is made from it.
        seed: Decides the fresh weights alone; torch's global random state is left as it was.

    Raises:
        InputError: No model has this name, or this model not these options.
    """
    builders = {**STUDENTS, **TEACHERS}
    if name not in builders:
        raise InputError(f"No model is called {name!r}. Known: {', '.join(builders)}.")
    known = inspect.signature(builders[name]).parameters
    for option in options:
        if option not in known:
            raise InputError(f"{name} has no option {option!r}: it has {', '.join(known) or 'none'}.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return builders[name](**options)


def load_checkpoint(directory: Path) -> Sam:
    """The model of a checkpoint artifact, in evaluation mode.

    Raises:
        InputError: ``directory`` is no checkpoint, or its weights are damaged or another model's.
    """
    card = Card.read(directory)
    if card.kind != "checkpoint" or card.model is None:
        raise InputError(f"{directory} is an artifact of kind {card.kind!r}, not a checkpoint.")
    return load_weights(build(card.model, card.options), directory / WEIGHTS).eval()
