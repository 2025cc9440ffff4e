"""``encoder.onnx`` and ``decoder.onnx`` on ONNX Runtime, the reference for the exported files."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.core.artifact import Card
from pipeline.core.errors import InputError
from pipeline.runtime.exported import decoder_feeds, missing_package, require_files, sizes
from pipeline.runtime.processor import decode_by_parts, encode_by_parts

if TYPE_CHECKING:
    import onnxruntime

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


def open_session(
    path: Path, device: str = "cpu", threads: int | None = None, *, simulate: bool = False
) -> "onnxruntime.InferenceSession":
    """Open an ONNX file.

    Args:
        path: The file.
        device: A key of `PROVIDERS`, as torch names devices.
        threads: CPU threads within one call; None leaves the choice to ONNX Runtime.
        simulate: Run quantized operators in floating point, independently of the processor's int8 arithmetic.

    Raises:
        InputError: The package, the device or the file is missing, or the file is damaged.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise missing_package("onnxruntime", error) from None
    provider = PROVIDERS.get(device.partition(":")[0])
    available = onnxruntime.get_available_providers()
    if provider not in available:
        known = ", ".join(name for name, value in PROVIDERS.items() if value in available)
        raise InputError(f"ONNX Runtime has no device {device!r} on this machine; it has {known}.")
    require_files(path.parent, path.name)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    if simulate:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        return onnxruntime.InferenceSession(path, options, providers=[provider])
    except Exception as error:  # noqa: BLE001 - its errors share no other base class
        reason = str(error).splitlines()[0]
        raise InputError(f"{path} cannot be opened by ONNX Runtime ({reason}): recreate it.") from None


class OnnxRuntimeSegmenter:
    """Runs an ONNX pair. See `pipeline.runtime.Segmenter`. Sessions may be used from many threads.

    Args:
        directory: Holds ``encoder.onnx`` and ``decoder.onnx``.
        card: Gives the model's sizes.
        device: ``cpu``, or ``cuda`` where ONNX Runtime was built with it.
        threads: CPU threads within one call.

    Raises:
        InputError: See `open_session`; or the card lacks the sizes.
    """

    def __init__(self, directory: Path, card: Card, *, device: str = "cpu", threads: int | None = None) -> None:
        self.image_size, self.input_size, self.embedding_size = sizes(directory, card)
        self._on_processor = device.partition(":")[0] == "cpu"
        self._encoder = open_session(directory / "encoder.onnx", device, threads)
        self._decoder = open_session(directory / "decoder.onnx", device, threads)

    def encode(self, images: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b 256 g g"]:
        """See `pipeline.runtime.Segmenter.encode`."""
        return encode_by_parts(self._encode, images) if self._on_processor else self._encode(images)

    def _encode(self, images: Tensor) -> Tensor:
        (embeddings,) = self._encoder.run(["image_embedding"], {"image": images.cpu().contiguous().numpy()})
        return torch.from_numpy(embeddings)

    def decode(
        self,
        image_embedding: Float[Tensor, "1 256 g g"],
        point_coords: Float[Tensor, "p n 2"],
        point_labels: Float[Tensor, "p n"],
        mask_input: Float[Tensor, "p 1 m m"] | None = None,
    ) -> tuple[Float[Tensor, "p 4 m m"], Float[Tensor, "p 4"]]:
        """See `pipeline.runtime.Segmenter.decode`."""
        prompts = (point_coords, point_labels, mask_input)
        if self._on_processor:
            return decode_by_parts(self._decode, image_embedding, *prompts)
        return self._decode(image_embedding, *prompts)

    def _decode(self, *embedding_and_prompts: Any) -> tuple[Tensor, Tensor]:
        feeds = decoder_feeds(*embedding_and_prompts)
        logits, ious = self._decoder.run(["low_res_logits", "iou_predictions"], feeds)
        return torch.from_numpy(logits), torch.from_numpy(ious)
