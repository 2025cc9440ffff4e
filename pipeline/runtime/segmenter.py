"""The interface of every runtime.

A `Segmenter` is a SAM split as in deployments: images to embeddings, and an embedding with prompts to masks. Both parts
work in the model's own frames; `pipeline.runtime.Predictor` converts images, prompts and masks.
"""

from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor


@runtime_checkable
class Segmenter(Protocol):
    """A SAM on some runtime. Methods are thread-safe."""

    image_size: int
    """Side of the prompt frame, in pixels."""
    input_size: int
    """Side of the image encoder's input, in pixels."""
    embedding_size: int
    """Side g of the image embedding, in cells."""

    def encode(self, images: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b 256 g g"]:
        """Image embeddings of images preprocessed by `pipeline.ops.geometry.to_input`."""

    def decode(
        self,
        image_embedding: Float[Tensor, "1 256 g g"],
        point_coords: Float[Tensor, "p n 2"],
        point_labels: Float[Tensor, "p n"],
        mask_input: Float[Tensor, "p 1 m m"] | None = None,
    ) -> tuple[Float[Tensor, "p 4 m m"], Float[Tensor, "p 4"]]:
        """Low-resolution logits and predicted IoUs of P prompts on one image.

        Args:
            image_embedding: Embedding of one image, from `encode`.
            point_coords: x and y in the prompt frame.
            point_labels: 1 foreground, 0 background, 2 and 3 a box's corners, -1 padding.
            mask_input: Logits of an earlier mask, side m = 4g.

        Returns:
            Four masks per prompt: token 0 is the single mask, 1 to 3 the multimask outputs.
        """
