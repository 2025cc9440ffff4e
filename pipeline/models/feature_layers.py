"""The numbered blocks of an image encoder and their output features.

Layer-wise distillation compares blocks of teacher and student. Every encoder is a chain of blocks, numbered from 0 in
forward order.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from math import isqrt
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pipeline.core.errors import InputError
from pipeline.models.published import ImageEncoderViT


@runtime_checkable
class HasFeatureLayers(Protocol):
    """An encoder whose blocks are not simply the children of ``blocks``."""

    def feature_layers(self) -> list[nn.Module]:
        """Blocks in forward order."""


def blocks(encoder: nn.Module) -> list[nn.Module]:
    """Blocks whose features can be captured.

    For a plain transformer its blocks, for TinyViT those of all stages, for EfficientViT the backbone's without the
    stem, for the bundled teacher its attention blocks, which share the embedding's grid.
    """
    return (
        encoder.feature_layers()
        if isinstance(encoder, HasFeatureLayers)
        else list(encoder.get_submodule("blocks").children())
    )


@contextmanager
def captured_features(encoder: nn.Module, numbers: Sequence[int]) -> Iterator[dict[int, Float[Tensor, "b _ _ _"]]]:
    """Store the output features ``(B, C, h, w)`` of some blocks in the yielded dict at each forward pass.

    Args:
        encoder: Image encoder of a teacher or a student.
        numbers: Indices into `blocks`.

    Raises:
        InputError: A number is out of range.
    """
    known = blocks(encoder)
    for number in numbers:
        if not 0 <= number < len(known):
            raise InputError(f"the encoder has no block {number}: its blocks are 0 to {len(known) - 1}.")
    features = dict[int, Tensor]()
    channels_last = isinstance(encoder, ImageEncoderViT)

    def keep(number: int, module: nn.Module, arguments: object, y: Tensor) -> None:
        features[number] = _as_map(y, channels_last=channels_last)

    with ExitStack() as stack:
        for number in numbers:
            stack.enter_context(known[number].register_forward_hook(partial(keep, number)))
        yield features


def _as_map(y: Tensor, *, channels_last: bool) -> Tensor:
    """Convert ``(B, h, w, C)``, ``(B, h * w, C)`` or ``(B, C, h, w)`` to ``(B, C, h, w)``."""
    if y.ndim == 3:
        side = isqrt(y.shape[1])
        return y.transpose(1, 2).unflatten(2, (side, side))
    return y.permute(0, 3, 1, 2) if channels_last else y


@torch.inference_mode()
def widths(encoder: nn.Module, numbers: Sequence[int], side: int) -> dict[int, int]:
    """Channels of these blocks' features, measured with a blank image of ``side`` pixels.

    Raises:
        InputError: A number is out of range.
    """
    training, parameter = encoder.training, next(encoder.parameters())
    with captured_features(encoder.eval(), numbers) as features:
        encoder(torch.zeros(1, 3, side, side, device=parameter.device, dtype=parameter.dtype))
    encoder.train(training)
    return {number: features[number].shape[1] for number in numbers}
