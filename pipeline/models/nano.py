"""Assembly of the nano students, whose prompt frame, embedding and prompt encoder are those of a bundled teacher."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import NamedTuple

from torch import nn

from pipeline.core.errors import InputError
from pipeline.models.dense_prompts import DensePromptEncoder
from pipeline.models.published import PromptEncoder
from pipeline.models.sam import Sam, assemble


class Frame(NamedTuple):
    """What a bundled teacher and its students share."""

    side: int
    """Pixels of the prompt frame and of the encoder's input."""
    grid: int
    """Cells per side of the image embedding."""
    prompt_encoder: type[PromptEncoder]


FRAMES: Mapping[str, Frame] = MappingProxyType(
    {"bundled": Frame(256, 16, PromptEncoder), "bundled_v2": Frame(512, 32, DensePromptEncoder)}
)


def assemble_nano(teacher: str, encoder: Callable[[Frame], nn.Module]) -> Sam:
    """Build a nano student for the frame of ``teacher``.

    Args:
        teacher: A bundled teacher.
        encoder: Builds the image encoder for a frame.

    Raises:
        InputError: No bundled teacher has this name.
    """
    if teacher not in FRAMES:
        raise InputError(f"the option teacher must be one of {', '.join(FRAMES)}, not {teacher!r}.")
    frame = FRAMES[teacher]
    return assemble(
        encoder(frame),
        image_size=frame.side,
        input_size=frame.side,
        embedding_size=frame.grid,
        prompt_encoder=frame.prompt_encoder,
    )
