"""Encoding of a dataset's images by the teacher: exactly the code that decides an embedding.

`identity` digests it, so that stored embeddings stay valid when only other things change: the mask decoder, a student,
the storage format.
"""

import hashlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import torch
from jaxtyping import Float, Float16
from torch import Tensor

from pipeline.core import code
from pipeline.data.shards import Shards
from pipeline.models.feature_layers import captured_features
from pipeline.models.sam import Sam
from pipeline.ops import geometry

TENSOR = "embeddings"
FEATURES = "block_{}"
"""Name of a block's features in the store."""
READERS = 4
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


@torch.inference_mode()
def encode(
    sam: Sam, images: Float[Tensor, "b 3 s s"], feature_layers: Sequence[int]
) -> dict[str, Float16[Tensor, "b _ g g"]]:
    """Embeddings, and features of the blocks ``feature_layers``, by their names in the store."""
    device = next(sam.parameters()).device
    if not feature_layers:
        return {TENSOR: sam.image_encoder(images.to(device)).to("cpu", torch.float16)}
    with captured_features(sam.image_encoder, feature_layers) as features:
        outputs = {TENSOR: sam.image_encoder(images.to(device))}
    outputs |= {FEATURES.format(layer): features[layer] for layer in feature_layers}
    return {name: value.to("cpu", torch.float16).contiguous() for name, value in outputs.items()}


def batches(shards: Shards, indices: range, batch: int, side: int) -> Iterator[Float[Tensor, "b 3 s s"]]:
    """Yield batches of preprocessed images, decoding the next batch in the background."""

    def read(index: int) -> Tensor:
        return geometry.to_input(shards[index].image, side)

    starts = indices[::batch]
    with ThreadPoolExecutor(READERS) as pool:
        ahead = [pool.submit(read, i) for i in indices[:batch]]
        for start in starts:
            current, begin = ahead, start - indices.start + batch
            ahead = [pool.submit(read, i) for i in indices[begin : begin + batch]]
            yield torch.stack([future.result() for future in current])
