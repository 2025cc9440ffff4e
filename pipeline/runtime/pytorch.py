"""A SAM in PyTorch: the reference for all engines, and a fast way to run on a GPU."""

import copy
from collections.abc import Callable, Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.core.errors import InputError
from pipeline.models.decoder import decode
from pipeline.models.sam import Sam
from pipeline.runtime.graphs import Graphs
from pipeline.runtime.processor import decode_by_parts, encode_by_parts, keep_pages

DTYPES: Mapping[str, torch.dtype] = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
EXECUTIONS = ("eager", "compile", "cuda_graph")


class TorchSegmenter:
    """Runs a SAM without gradients. See `pipeline.runtime.Segmenter`.

    Args:
        sam: Model, moved to ``device`` and switched to evaluation mode.
        device: Any PyTorch device.
        threads: CPU threads, for the whole process.
        precision: Precision of the image encoder, a key of `DTYPES`; parts of it that need fp32 keep it, as does the
            decoder.
        execution: Execution of the image encoder, one of `EXECUTIONS`. ``compile`` takes a minute at the first call,
            ``cuda_graph`` a second per batch size; calls of ``cuda_graph`` are serialised.

    Raises:
        InputError: The device is not available, or precision or execution are unknown or unsupported on the device.
    """

    def __init__(
        self,
        sam: Sam,
        *,
        device: str = "cpu",
        threads: int | None = None,
        precision: str = "fp32",
        execution: str = "eager",
    ) -> None:
        if precision not in DTYPES:
            raise InputError(f"PyTorch runs encoders in {', '.join(DTYPES)}, not in {precision!r}.")
        if execution not in EXECUTIONS:
            raise InputError(f"execution must be one of {', '.join(EXECUTIONS)}, not {execution!r}.")
        if execution == "cuda_graph" and not device.startswith("cuda"):
            raise InputError(f"execution 'cuda_graph' needs a device 'cuda', not {device!r}.")
        self.image_size = sam.image_size
        self.input_size = sam.input_size
        self.embedding_size = sam.embedding_size
        try:
            self._device = torch.device(device)
            self._sam = sam.to(self._device).eval()
        except (RuntimeError, AssertionError) as error:
            reason = str(error).splitlines()[0]
            raise InputError(f"PyTorch cannot run on device {device!r} ({reason}): use device 'cpu'.") from None
        if self._device.type == "cpu":
            keep_pages()
        if threads is not None:
            torch.set_num_threads(threads)
        self._dtype = DTYPES[precision]
        encoder = self._sam.image_encoder
        if precision != "fp32":
            encoder = copy.deepcopy(encoder).to(self._dtype)
        self._encoder: Callable[[Tensor], Tensor] = encoder
        self._compiled = execution == "compile"  # not split into parts: each batch size would be compiled separately
        if self._compiled:
            self._encoder = torch.compile(encoder)
        elif execution == "cuda_graph":
            self._encoder = Graphs(encoder)

    @torch.inference_mode()
    def encode(self, images: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b 256 g g"]:
        """See `pipeline.runtime.Segmenter.encode`."""
        if self._device.type != "cpu" or self._compiled:
            return self._encode(images)
        return encode_by_parts(self._encode, images)

    def _encode(self, images: Tensor) -> Tensor:
        return self._encoder(images.to(self._device, self._dtype)).float()

    @torch.inference_mode()
    def decode(
        self,
        image_embedding: Float[Tensor, "1 256 g g"],
        point_coords: Float[Tensor, "p n 2"],
        point_labels: Float[Tensor, "p n"],
        mask_input: Float[Tensor, "p 1 m m"] | None = None,
    ) -> tuple[Float[Tensor, "p 4 m m"], Float[Tensor, "p 4"]]:
        """See `pipeline.runtime.Segmenter.decode`."""
        prompts = (point_coords, point_labels, mask_input)
        if self._device.type != "cpu":
            return self._decode(image_embedding, *prompts)
        return decode_by_parts(self._decode, image_embedding, *prompts)

    def _decode(
        self, image_embedding: Tensor, point_coords: Tensor, point_labels: Tensor, mask_input: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        low_res_logits, iou_predictions = decode(
            self._sam,
            image_embedding.to(self._device),
            point_coords[None].to(self._device),
            point_labels[None].to(self._device),
            None if mask_input is None else mask_input[None].to(self._device),
        )
        return low_res_logits[0].float(), iou_predictions[0].float()
