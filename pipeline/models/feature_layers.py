"""The blocks of an image encoder by number, and what comes out of them.

Layer-wise distillation compares blocks of teacher and student. Every encoder here is a chain of blocks; they are
numbered from 0, from the image to the embedding.
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
    """An encoder whose blocks do not simply lie in ``blocks``."""

    def feature_layers(self) -> list[nn.Module]:
        """Its blocks, from the image to the embedding."""


def blocks(encoder: nn.Module) -> list[nn.Module]:
    """The blocks that can be tapped.

    A plain transformer has its own; TinyViT has those of its stages, EfficientViT its backbone's without the stem, and
    the bundled teacher its attention blocks, whose grid is that of the embedding.
    """
    return (
        encoder.feature_layers()
        if isinstance(encoder, HasFeatureLayers)
        else list(encoder.get_submodule("blocks").children())
    )


@contextmanager
def captured_features(encoder: nn.Module, numbers: Sequence[int]) -> Iterator[dict[int, Float[Tensor, "b _ _ _"]]]:
    """While open, each forward pass of ``encoder`` leaves the features ``(B, C, h, w)`` of these blocks in the dict.

    Args:
        encoder: Of a teacher or a student.
        numbers: Of `blocks`.

    Raises:
        InputError: There is no block of such a number.
    """
    known = blocks(encoder)
    for number in numbers:
        if not 0 <= number < len(known):
            raise InputError(f"there is no block {number} to layer: the encoder's go from 0 to {len(known) - 1}.")
    features = dict[int, Tensor]()
    channels_last = isinstance(encoder, ImageEncoderViT)

    def keep(number: int, module: nn.Module, arguments: object, y: Tensor) -> None:
        features[number] = _as_map(y, channels_last=channels_last)

    with ExitStack() as stack:
        for number in numbers:
            stack.enter_context(known[number].register_forward_hook(partial(keep, number)))
        yield features


def _as_map(y: Tensor, *, channels_last: bool) -> Tensor:
    """``(B, h, w, C)``, ``(B, h * w, C)`` or ``(B, C, h, w)`` to the last of them."""
    if y.ndim == 3:
        side = isqrt(y.shape[1])
        return y.transpose(1, 2).unflatten(2, (side, side))
    return y.permute(0, 3, 1, 2) if channels_last else y


@torch.inference_mode()
def widths(encoder: nn.Module, numbers: Sequence[int], side: int) -> dict[int, int]:
    """Channels of these blocks' features, found by one image of ``side`` pixels.

    Raises:
        InputError: There is no block of such a number.
    """
    training, parameter = encoder.training, next(encoder.parameters())
    with captured_features(encoder.eval(), numbers) as features:
        encoder(torch.zeros(1, 3, side, side, device=parameter.device, dtype=parameter.dtype))
    encoder.train(training)
    return {number: features[number].shape[1] for number in numbers}
