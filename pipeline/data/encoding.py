"""Encoding of a dataset's images by the teacher: exactly the code that decides an embedding.

`identity` digests it, so that stored embeddings stay valid when only other things change: the mask decoder, a student,
the storage format.
"""

import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float16, Int, UInt8
from torch import Tensor

from pipeline.core import code
from pipeline.data.shards import Shards
from pipeline.models.feature_layers import captured_features
from pipeline.models.sam import Sam
from pipeline.ops import geometry

TENSOR = "embeddings"
FEATURES = "block_{}"
"""Name of a block's features in the store."""
_ASSEMBLY = frozenset({"pipeline/models/sam.py"})
"""Assembles encoder and decoder; does not affect embeddings."""


def identity(sam: Sam, module: str) -> dict[str, str]:
    """Digests of what decides an image's embedding: the encoder's weights, and the code.

    Args:
        sam: The teacher.
        module: Dotted name of the module that builds its image encoder.
    """
    weights = hashlib.sha256()
    for name, value in sorted(sam.image_encoder.state_dict().items()):
        weights.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        weights.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return {"encoder": weights.hexdigest(), "code": code.digest(__name__, module, without=_ASSEMBLY)}


@dataclass(frozen=True)
class DrawPixels:
    """Draws batches of images in bytes, and their sizes without padding. Picklable."""

    shards: Shards
    side: int
    """Of the encoder's input, in pixels."""

    def __call__(
        self, indices: list[int], number: int, rngs: list[np.random.Generator]
    ) -> tuple[UInt8[Tensor, "b s s 3"], Int[Tensor, "b 2"]]:
        """Draw a batch; see `pipeline.training.Draw`."""
        images = [self.shards.resized(index, self.side, annotated=False).pixels for index in indices]
        pixels = torch.from_numpy(np.stack([geometry.padded(image, self.side) for image in images]))
        return pixels, torch.tensor([image.shape[:2] for image in images])


@torch.inference_mode()
def encode(
    sam: Sam, pixels: UInt8[Tensor, "b s s 3"], sizes: Int[Tensor, "b 2"], feature_layers: Sequence[int], precision: str
) -> dict[str, Float16[Tensor, "b _ g g"]]:
    """Embeddings, and features of the blocks ``feature_layers``, by their names in the store; on the teacher's device.

    Args:
        sam: The teacher.
        pixels: See `DrawPixels`.
        sizes: Likewise.
        feature_layers: Blocks whose features are wanted.
        precision: fp32, or fp16 or bf16 for a forward pass in mixed precision.
    """
    device = next(sam.parameters()).device
    images = geometry.normalised(pixels.to(device, non_blocking=True), sizes.to(device, non_blocking=True))
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16}.get(precision)
    with ExitStack() as stack:
        features = dict[int, Tensor]()
        if feature_layers:
            features = stack.enter_context(captured_features(sam.image_encoder, feature_layers))
        stack.enter_context(torch.autocast(device.type, dtype, enabled=dtype is not None))
        outputs = {TENSOR: sam.image_encoder(images)}
    outputs |= {FEATURES.format(layer): features[layer] for layer in feature_layers}
    return {name: value.to(torch.float16).contiguous() for name, value in outputs.items()}
