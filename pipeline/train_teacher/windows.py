"""Training on windows of the frame: the part of the embedding that a window covers, at its place in the frame.

A quarter of the frame costs a quarter of a step in the encoder and in the decoder, so a step sees four times as many
small objects. Positions are those of the whole frame, so that the weights serve it without change.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float
from torch import Tensor

from pipeline.models.dense_prompts import WHOLE, DensePromptEncoder
from pipeline.models.sam import Sam


@dataclass(frozen=True)
class Window:
    """A square of embedding cells."""

    column: int
    row: int
    """Cell of the frame in its upper left corner."""
    cells: int
    """Cells per side."""


def whole(sam: Sam) -> Window:
    """The window that is the whole frame."""
    return Window(0, 0, sam.embedding_size)


def random_window(rng: np.random.Generator, sam: Sam, cells: int) -> Window:
    """A window at a uniformly random place."""
    column, row = (int(value) for value in rng.integers(sam.embedding_size - cells + 1, size=2))
    return Window(column, row, cells)


def cell_px(sam: Sam) -> int:
    """Side of an embedding cell in pixels of the prompt frame."""
    return sam.image_size // sam.prompt_encoder.image_embedding_size[0]


def side_px(sam: Sam, window: Window) -> int:
    """Side of a window in pixels of the prompt frame."""
    return window.cells * cell_px(sam)


def corner_px(sam: Sam, window: Window) -> tuple[float, float]:
    """Upper left corner (x, y) of a window in the prompt frame."""
    return float(window.column * cell_px(sam)), float(window.row * cell_px(sam))


@contextmanager
def positioned(sam: Sam, window: Window) -> Iterator[None]:
    """Within the context, `pipeline.models.decoder.decode` takes embeddings of the window."""
    encoder, size = sam.prompt_encoder, sam.embedding_size
    rows, columns = (slice(start, start + window.cells) for start in (window.row, window.column))
    full = encoder.get_dense_pe

    def dense_pe() -> Float[Tensor, "1 c g g"]:
        encoding: Tensor = full()[..., rows, columns]
        return encoding

    encoder.get_dense_pe = dense_pe
    if isinstance(encoder, DensePromptEncoder):
        encoder.window = rows, columns
    sam.embedding_size = window.cells
    try:
        yield
    finally:
        del encoder.get_dense_pe
        if isinstance(encoder, DensePromptEncoder):
            encoder.window = WHOLE
        sam.embedding_size = size
