"""A SAM as a PyTorch module: the reference that all engines are measured against."""

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.errors import InputError
from pipeline.models.decoder import decode
from pipeline.models.sam import Sam


class TorchSegmenter:
    """Runs a SAM in eager mode, without gradients. See `pipeline.runtime.Segmenter`.

    Args:
        sam: Moved to ``device`` and switched to evaluation.
        device: Any of PyTorch's.
        threads: CPU threads, for the whole process.

    Raises:
        InputError: The device is not there.
    """

    def __init__(self, sam: Sam, *, device: str = "cpu", threads: int | None = None) -> None:
        self.image_size = sam.image_size
        self.input_size = sam.input_size
        self.embedding_size = sam.embedding_size
        try:
            self._device = torch.device(device)
            self._sam = sam.to(self._device).eval()
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"PyTorch cannot run on device {device!r} ({reason}): use device 'cpu'.") from None
        if threads is not None:
            torch.set_num_threads(threads)

    @torch.inference_mode()
    def encode(self, images: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b 256 g g"]:
        """See `pipeline.runtime.Segmenter.encode`."""
        embeddings: Tensor = self._sam.image_encoder(images.to(self._device))
        return embeddings.float()

    @torch.inference_mode()
    def decode(
        self,
        image_embedding: Float[Tensor, "1 256 g g"],
        point_coords: Float[Tensor, "p n 2"],
        point_labels: Float[Tensor, "p n"],
        mask_input: Float[Tensor, "p 1 m m"] | None = None,
    ) -> tuple[Float[Tensor, "p 4 m m"], Float[Tensor, "p 4"]]:
        """See `pipeline.runtime.Segmenter.decode`."""
        low_res_logits, iou_predictions = decode(
            self._sam,
            image_embedding.to(self._device),
            point_coords[None].to(self._device),
            point_labels[None].to(self._device),
            None if mask_input is None else mask_input[None].to(self._device),
        )
        return low_res_logits[0].float(), iou_predictions[0].float()
