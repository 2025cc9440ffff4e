"""Models by name. A new student is one module and one line here; contract tests run over the table.

A module is imported only when one of its models is built, so that a student's artifacts do not depend on the code of
other students.
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
from pipeline.core.artifact import CARD, Card
from pipeline.core.bundled import PREFIX, directory_of
from pipeline.core.bundled import STUDENTS as BUNDLED
from pipeline.core.errors import InputError
from pipeline.core.untrusted import tensor_file
from pipeline.models.sam import WEIGHTS, Sam, load_state, load_weights

STUDENTS: Mapping[str, str] = {
    "efficientvit_sam_nano": "pipeline.models.efficientvit_sam",
    "efficientvit_sam_l0": "pipeline.models.efficientvit_sam",
    "efficientvit_sam_l1": "pipeline.models.efficientvit_sam",
    "efficientvit_sam_l2": "pipeline.models.efficientvit_sam",
    "efficientvit_sam_xl0": "pipeline.models.efficientvit_sam",
    "efficientvit_sam_xl1": "pipeline.models.efficientvit_sam",
    "tinysam_nano": "pipeline.models.tinysam",
    "tinysam": "pipeline.models.tinysam",
    "mobile_sam": "pipeline.models.tinysam",
    "edge_sam_nano": "pipeline.models.edge_sam",
    "edge_sam": "pipeline.models.edge_sam",
    "sam_lightening_nano": "pipeline.models.sam_lightening",
    "sam_lightening": "pipeline.models.sam_lightening",
}
"""Student name to the module that has its builder, a function of the same name."""

TEACHERS: Mapping[str, str] = {
    "bundled": "pipeline.models.bundled",
    "bundled_v2": "pipeline.models.bundled_v2",
    "vit_b": "pipeline.models.vit",
    "vit_l": "pipeline.models.vit",
    "vit_h": "pipeline.models.vit",
}

MODELS: Mapping[str, str] = {**TEACHERS, **STUDENTS}

_NO_OPTIONS: Mapping[str, Any] = MappingProxyType({})


def build(name: str, options: Mapping[str, Any] = _NO_OPTIONS, *, seed: int = 0) -> Sam:
    """Build a student or a teacher with newly initialised weights, in training mode.

    Args:
        name: A key of `STUDENTS` or `TEACHERS`.
        options: Keyword arguments of its builder, which decide what it computes. They come from the student's section
            of params.yaml and are recorded on the cards of all artifacts made from it.
        seed: Seed of the initial weights; torch's global random state is not changed.

    Raises:
        InputError: The name is unknown, or the model has no such option.
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
    """Dotted name of the module that builds a student or a teacher.

    Raises:
        InputError: The name is unknown.
    """
    if name not in MODELS:
        raise InputError(f"No model is called {name!r}. Known: {', '.join(MODELS)}.")
    return MODELS[name]


def load_checkpoint(directory: Path) -> Sam:
    """Load the model of a checkpoint artifact, in evaluation mode.

    A checkpoint with the entry ``decoder`` under ``load`` holds an image encoder alone; the prompt encoder and mask
    decoder are those of the bundled teacher of that name.

    Raises:
        InputError: ``directory`` is not a checkpoint, or its weights are damaged or another model's.
    """
    card = Card.read(directory)
    if card.kind != "checkpoint" or card.model is None:
        raise InputError(f"{directory} is an artifact of kind {card.kind!r}, not a checkpoint.")
    sam = build(card.model, card.options)
    if "decoder" not in card.load:
        return load_weights(sam, directory / WEIGHTS).eval()
    copy_decoder(load_checkpoint(directory_of(f"{PREFIX}{card.load['decoder']}")), sam)
    encoder = tensor_file.safetensors(directory / WEIGHTS, remedy="restore it with `git checkout`")
    load_state(sam, {**sam.state_dict(), **encoder}, directory / WEIGHTS)
    return sam.eval()


def copy_decoder(source: Sam, sam: Sam) -> None:
    """Copy the weights of the prompt encoder and mask decoder of ``source`` to ``sam``, whose grid must be the same."""
    sam.prompt_encoder.load_state_dict(source.prompt_encoder.state_dict())
    sam.mask_decoder.load_state_dict(source.mask_decoder.state_dict())


def require_same_grid(student: Sam, name: str, teacher: Sam, teacher_name: str) -> None:
    """Check that a student's image embedding and prompt frame have its teacher's sizes.

    Raises:
        InputError: They differ.
    """
    sizes = [f"{m.embedding_size}x{m.embedding_size} cells of {m.image_size} pixels" for m in (student, teacher)]
    if sizes[0] != sizes[1]:
        raise InputError(
            f"student {name} has an image embedding of {sizes[0]}, but its teacher {teacher_name} has {sizes[1]}: "
            "choose nano students with the bundled teacher, full-size ones with a full-size teacher (params.yaml)."
        )


def link(folder: Path = Path("deps/models")) -> str:
    """Write ``<folder>/<name>/`` for each model: links to the files that only this model depends on.

    These are its source files and, for a bundled student, the card of its weights, from which ``init: bundled`` starts.
    DVC can substitute a model's name into a path, but not expand it to a list of paths.

    Returns:
        A one-line summary.
    """
    shutil.rmtree(folder, ignore_errors=True)
    shared = code.closure(__name__)
    for name, module in MODELS.items():
        (folder / name).mkdir(parents=True)
        for file in code.closure(module) - shared:
            (folder / name / Path(file).name).symlink_to(Path("../../..", file))
        if name in BUNDLED:
            (folder / name / CARD).symlink_to(Path("../../../pipeline/teacher", name, CARD))
    return f"{folder}/ has links for {len(MODELS)} models"
