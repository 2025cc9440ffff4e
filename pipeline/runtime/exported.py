"""Shared by all runtimes of exported models: checks of the card and the directory, and the decoder's inputs."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.core.artifact import Card
from pipeline.core.errors import InputError


def sizes(directory: Path, card: Card) -> tuple[int, int, int]:
    """``image_size``, ``input_size`` and ``embedding_size`` of an exported model, read off its card.

    Raises:
        InputError: The card lacks one of them.
    """
    values = [card.load.get(key) for key in ("image_size", "input_size", "embedding_size")]
    if not all(isinstance(value, int) and value > 0 for value in values):
        raise InputError(f"the card of {directory} lacks image_size, input_size or embedding_size: recreate it.")
    image_size, input_size, embedding_size = (int(value) for value in values if value is not None)
    return image_size, input_size, embedding_size


def require_files(directory: Path, *names: str) -> None:
    """Check that an artifact has all its files.

    Raises:
        InputError: One is missing.
    """
    for name in names:
        if not (directory / name).is_file():
            raise InputError(f"{directory / name} does not exist: run `dvc repro` or `dvc pull`.")


def missing_package(package: str, error: ImportError) -> InputError:
    """The error for a runtime's package that cannot be imported."""
    return InputError(f"this artifact runs on {package}, which cannot be imported ({error}): `pip install {package}`.")


def decoder_tensors(
    image_embedding: Float[Tensor, "1 256 g g"],
    point_coords: Float[Tensor, "p n 2"],
    point_labels: Float[Tensor, "p n"],
    mask_input: Float[Tensor, "p 1 m m"] | None,
) -> dict[str, Tensor]:
    """Inputs of the exported decoder by name; without a mask prompt, zeros and a flag to ignore them."""
    side = 4 * image_embedding.shape[-1]
    device = image_embedding.device  # no copy to a GPU where the embedding is on one
    mask = torch.zeros(1, 1, side, side, device=device) if mask_input is None else mask_input
    return {
        "image_embedding": image_embedding,
        "point_coords": point_coords,
        "point_labels": point_labels,
        "mask_input": mask,
        "has_mask_input": torch.full((1,), float(mask_input is not None), device=device),
    }


def decoder_feeds(
    image_embedding: Float[Tensor, "1 256 g g"],
    point_coords: Float[Tensor, "p n 2"],
    point_labels: Float[Tensor, "p n"],
    mask_input: Float[Tensor, "p 1 m m"] | None,
) -> dict[str, Any]:
    """`decoder_tensors` as float32 arrays."""
    tensors = decoder_tensors(image_embedding, point_coords, point_labels, mask_input)
    return {name: np.ascontiguousarray(tensor.cpu().float().numpy()) for name, tensor in tensors.items()}
