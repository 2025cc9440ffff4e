"""``encoder.xml`` and ``decoder.xml`` on OpenVINO, the engine for CPUs, where int8 is faster.

The floating-point precision is always set explicitly: by default, OpenVINO runs an fp32 model in bf16 on CPUs that
support it.
"""

from collections.abc import Mapping
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from pipeline.core.artifact import Card
from pipeline.core.errors import InputError
from pipeline.runtime.exported import decoder_feeds, missing_package, require_files, sizes
from pipeline.runtime.processor import decode_by_parts, encode_by_parts

_UNFUSED = {"SNIPPETS_MODE": "DISABLE"}
"""OpenVINO's generated attention kernel takes twice the time of plain products for few queries over many keys."""


class OpenVinoSegmenter:
    """Runs an OpenVINO pair. See `pipeline.runtime.Segmenter`.

    Args:
        directory: Holds ``encoder.xml``, ``encoder.bin``, ``decoder.xml`` and ``decoder.bin``.
        card: Gives the model's sizes and ``inference_precision``, ``f32`` or ``bf16``.
        device: ``cpu``.
        threads: CPU threads within one call.

    Raises:
        InputError: The package, the device or a file is missing, or a file is damaged.
    """

    def __init__(self, directory: Path, card: Card, *, device: str = "cpu", threads: int | None = None) -> None:
        if device != "cpu":
            raise InputError(f"OpenVINO engines run on device 'cpu', not on {device!r}.")
        self.image_size, self.input_size, self.embedding_size = sizes(directory, card)
        precision = str(card.load.get("inference_precision", "f32"))
        self._encoder = _Compiled(directory, "encoder", precision, threads, {})
        self._decoder = _Compiled(directory, "decoder", precision, threads, _UNFUSED)

    def encode(self, images: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b 256 g g"]:
        """See `pipeline.runtime.Segmenter.encode`."""
        return encode_by_parts(self._encode, images)

    def _encode(self, images: Tensor) -> Tensor:
        outputs = self._encoder({"image": images.cpu().contiguous().numpy()})
        return torch.from_numpy(outputs["image_embedding"])

    def decode(
        self,
        image_embedding: Float[Tensor, "1 256 g g"],
        point_coords: Float[Tensor, "p n 2"],
        point_labels: Float[Tensor, "p n"],
        mask_input: Float[Tensor, "p 1 m m"] | None = None,
    ) -> tuple[Float[Tensor, "p 4 m m"], Float[Tensor, "p 4"]]:
        """See `pipeline.runtime.Segmenter.decode`."""
        return decode_by_parts(self._decode, image_embedding, point_coords, point_labels, mask_input)

    def _decode(self, *embedding_and_prompts: Any) -> tuple[Tensor, Tensor]:
        outputs = self._decoder(decoder_feeds(*embedding_and_prompts))
        return torch.from_numpy(outputs["low_res_logits"]), torch.from_numpy(outputs["iou_predictions"])


class _Compiled:
    """A compiled model and a pool of infer requests, one per concurrent call."""

    def __init__(
        self, directory: Path, name: str, precision: str, threads: int | None, more: Mapping[str, Any]
    ) -> None:
        try:
            import openvino
        except ImportError as error:
            raise missing_package("openvino", error) from None
        require_files(directory, f"{name}.xml", f"{name}.bin")
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision, **more}
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        try:
            self._model = openvino.Core().compile_model(directory / f"{name}.xml", "CPU", settings)
        except RuntimeError as error:
            reason = " ".join(str(error).split())[:300]
            raise InputError(f"{directory / name}.xml cannot be compiled ({reason}): recreate it.") from None
        self._names = [output.any_name for output in self._model.outputs]
        self._idle: SimpleQueue[openvino.InferRequest] = SimpleQueue()

    def __call__(self, feeds: dict[str, Any]) -> dict[str, np.ndarray]:
        try:
            request = self._idle.get_nowait()
        except Empty:
            request = self._model.create_infer_request()
        # Results are copied, since the next call overwrites the request's memory.
        results = request.infer(feeds, share_inputs=True, share_outputs=False)
        outputs = {name: results[name] for name in self._names}
        self._idle.put(request)
        return outputs
