"""The models by name. A new student is a module of its own and a line here; contract tests run over the table.

A module is imported when one of its models is built: what is made of one student hangs on no other student's code.
"""

import inspect
import shutil
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch

from pipeline.core import code
from pipeline.core.artifact import Card
from pipeline.core.errors import InputError
from pipeline.models.sam import WEIGHTS, Sam, load_weights

STUDENTS: Mapping[str, str] = {
    "efficientvit_sam_nano": "pipeline.models.efficientvit_sam",
    "efficientvit_sam_l0": "pipeline.models.efficientvit_sam",
    "efficientvit_sam_l1": "pipeline.models.efficientvit_sam",
    "efficientvit_sam_l2": "pipeline.models.efficientvit_sam",
    "efficientvit_sam_xl0": "pipeline.models.efficientvit_sam",
    "efficientvit_sam_xl1": "pipeline.models.efficientvit_sam",
    "tinysam_nano": "pipeline.models.tinysam",
    "tinysam": "pipeline.models.tinysam",
    "sam_lightening_nano": "pipeline.models.sam_lightening",
    "sam_lightening": "pipeline.models.sam_lightening",
}
"""The module whose function of that name builds the student."""

TEACHERS: Mapping[str, str] = {
    "bundled": "pipeline.models.bundled",
    "vit_b": "pipeline.models.vit",
    "vit_l": "pipeline.models.vit",
    "vit_h": "pipeline.models.vit",
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
    builder: Callable[..., Sam] = getattr(import_module(module_of(name)), name)
    known = inspect.signature(builder).parameters
    for option in options:
        if option not in known:
            raise InputError(f"{name} has no option {option!r}: it has {', '.join(known) or 'none'}.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return builder(**options)


def module_of(name: str) -> str:
    """The module that builds a student or a teacher, dotted.

    Raises:
        InputError: No model has this name.
    """
    modules = {**STUDENTS, **TEACHERS}
    if name not in modules:
        raise InputError(f"No model is called {name!r}. Known: {', '.join(modules)}.")
    return modules[name]


def load_checkpoint(directory: Path) -> Sam:
    """The model of a checkpoint artifact, in evaluation mode.

    Raises:
        InputError: ``directory`` is no checkpoint, or its weights are damaged or another model's.
    """
    card = Card.read(directory)
    if card.kind != "checkpoint" or card.model is None:
        raise InputError(f"{directory} is an artifact of kind {card.kind!r}, not a checkpoint.")
    return load_weights(build(card.model, card.options), directory / WEIGHTS).eval()


def link(folder: Path = Path("deps/students")) -> str:
    """Write ``<folder>/<name>/`` for each student: links to the files that decide this one and not every student.

    DVC fills a student's name into a path, and into nothing that would lead to a list of paths.

    Returns:
        What was done, in one line.
    """
    shutil.rmtree(folder, ignore_errors=True)
    shared = code.closure(__name__)
    for name, module in STUDENTS.items():
        (folder / name).mkdir(parents=True)
        for file in code.closure(module) - shared:
            (folder / name / Path(file).name).symlink_to(Path("../../..", file))
    return f"{folder}/ has links for {len(STUDENTS)} students"
