"""``encoder.engine`` and ``decoder.engine`` on TensorRT 10.16 to 11, the engine for NVIDIA GPUs.

Inputs and outputs are torch tensors on the GPU, passed by address without copies to the host.
Source of the calls: TensorRT's Python API (named tensors, ``execute_async_v3``).
"""

from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

import torch
from jaxtyping import Float
from pydantic import BaseModel, ConfigDict
from torch import Tensor

from pipeline.core.artifact import Card
from pipeline.core.errors import InputError
from pipeline.core.untrusted import json_file
from pipeline.core.untrusted.regular_file import read_bytes
from pipeline.runtime.exported import decoder_tensors, missing_package, require_files, sizes

SIDECAR = "engine.json"
"""File beside the engines: build settings, GPU, and the precision of each layer."""
BOUND = ("tensorrt", "gpu", "compute_capability")
"""Keys of the sidecar that must match the machine that loads the engines."""

_LARGEST_SIDECAR, _LARGEST_ENGINE = 64 << 20, 16 << 30
"""Bytes of the files."""


class _Sidecar(BaseModel):
    """Keys of the sidecar that are read."""

    model_config = ConfigDict(strict=True)

    tensorrt: str
    gpu: str
    compute_capability: str
    hardware_compatibility: str


def bindings() -> Any:
    """The package ``tensorrt``.

    Raises:
        InputError: It is not installed, or its version is not supported.
    """
    try:
        import tensorrt
    except ImportError as error:
        raise missing_package("tensorrt", error) from None
    if int(tensorrt.__version__.split(".")[0]) not in (10, 11):
        raise InputError(f"TensorRT {tensorrt.__version__} is not supported: install 10.16 or 11.")
    return tensorrt


def machine(trt: Any, device: torch.device) -> dict[str, str]:
    """What an engine is bound to: TensorRT version, GPU and compute capability; the CUDA version is informational.

    Raises:
        InputError: There is no GPU.
    """
    if not torch.cuda.is_available():
        raise InputError(
            "TensorRT needs an NVIDIA GPU, and PyTorch finds none: start this on a GPU worker "
            "(docs/how-to/gpu-workers.md)."
        )
    properties = torch.cuda.get_device_properties(device)
    return {
        "tensorrt": str(trt.__version__),
        "gpu": properties.name,
        "compute_capability": f"{properties.major}.{properties.minor}",
        "cuda": str(torch.version.cuda),
    }


class TensorRtSegmenter:
    """Runs a TensorRT pair. See `pipeline.runtime.Segmenter`. Results stay on the GPU.

    Args:
        directory: Holds ``encoder.engine``, ``decoder.engine`` and ``engine.json``.
        card: Gives the model's sizes.
        device: ``cuda``, or ``cuda:1`` and so on.
        threads: Ignored.

    Raises:
        InputError: The package, the GPU or a file is missing, or the engines were built for another GPU or version.
    """

    def __init__(self, directory: Path, card: Card, *, device: str = "cuda", threads: int | None = None) -> None:
        del threads
        if not device.startswith("cuda"):
            raise InputError(f"TensorRT engines run on device 'cuda', not on {device!r}.")
        self.image_size, self.input_size, self.embedding_size = sizes(directory, card)
        require_files(directory, "encoder.engine", "decoder.engine", SIDECAR)
        trt, self._device = bindings(), torch.device(device)
        require_match(directory, machine(trt, self._device), str(card.model), str(card.precision))
        with torch.cuda.device(self._device):
            self._encoder = _Engine(trt, directory / "encoder.engine")
            self._decoder = _Engine(trt, directory / "decoder.engine")

    def encode(self, images: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b 256 g g"]:
        """See `pipeline.runtime.Segmenter.encode`."""
        with torch.cuda.device(self._device):  # contexts belong to the device that is current at their creation
            return self._encoder({"image": images.to(self._device)})["image_embedding"].float()

    def decode(
        self,
        image_embedding: Float[Tensor, "1 256 g g"],
        point_coords: Float[Tensor, "p n 2"],
        point_labels: Float[Tensor, "p n"],
        mask_input: Float[Tensor, "p 1 m m"] | None = None,
    ) -> tuple[Float[Tensor, "p 4 m m"], Float[Tensor, "p 4"]]:
        """See `pipeline.runtime.Segmenter.decode`."""
        feeds = decoder_tensors(image_embedding, point_coords, point_labels, mask_input)
        with torch.cuda.device(self._device):
            outputs = self._decoder({name: tensor.to(self._device) for name, tensor in feeds.items()})
        return outputs["low_res_logits"].float(), outputs["iou_predictions"].float()


def require_match(directory: Path, here: dict[str, str], student: str, precision: str) -> None:
    """Check that engines were built for this GPU and TensorRT version.

    Raises:
        InputError: They were not, or the sidecar is damaged.
    """
    path, remedy = directory / SIDECAR, "Rebuild the engine."
    content = json_file.load(path, _LARGEST_SIDECAR, remedy=remedy)
    built = json_file.validated(content, _Sidecar, str(path), remedy=remedy).model_dump()
    differing = [key for key in BOUND if built[key] != here[key]]
    compatible = built["hardware_compatibility"]
    if compatible == "same_compute_capability":
        differing = [key for key in differing if key != "gpu"]
    elif compatible == "ampere_plus" and int(here["compute_capability"].split(".")[0]) >= 8:
        differing = [key for key in differing if key == "tensorrt"]
    if differing:
        was = ", ".join(f"{key} {built[key]}" for key in differing)
        now = ", ".join(here[key] for key in differing)
        raise InputError(
            f"{directory} was built for {was}; this machine has {now}. Rebuild it here: "
            f"`dvc repro --force --single-item build_engine@{student}-{precision}`."
        )


class _Engine:
    """An engine and a pool of execution contexts, each with its own stream.

    On the default stream TensorRT would add synchronizations of its own. The host never waits here: events order the
    context's stream and the caller's.
    """

    def __init__(self, trt: Any, path: Path) -> None:
        self._trt, self._path = trt, path
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.WARNING))
        self._engine = self._runtime.deserialize_cuda_engine(read_bytes(path, _LARGEST_ENGINE, remedy="Rebuild it."))
        if self._engine is None:
            raise InputError(f"{path} cannot be deserialized by TensorRT {trt.__version__}: rebuild it.")
        names = [self._engine.get_tensor_name(i) for i in range(self._engine.num_io_tensors)]
        self._inputs = [n for n in names if self._engine.get_tensor_mode(n) == trt.TensorIOMode.INPUT]
        self._outputs = [n for n in names if self._engine.get_tensor_mode(n) == trt.TensorIOMode.OUTPUT]
        self._dtypes = {n: _torch_dtype(trt, self._engine.get_tensor_dtype(n)) for n in names}
        self._idle: SimpleQueue[tuple[Any, Any]] = SimpleQueue()

    def __call__(self, feeds: dict[str, Tensor]) -> dict[str, Tensor]:
        try:
            context, stream = self._idle.get_nowait()
        except Empty:
            context, stream = self._engine.create_execution_context(), torch.cuda.Stream()
        results = self._execute(context, stream, feeds)
        # Another thread may use it at once: calls of one stream run in order. A failed context is not reused.
        self._idle.put((context, stream))
        return results

    def _execute(self, context: Any, stream: Any, feeds: dict[str, Tensor]) -> dict[str, Tensor]:
        inputs = {name: feeds[name].to(self._dtypes[name]).contiguous() for name in self._inputs}
        for name, tensor in inputs.items():
            if not context.set_input_shape(name, tuple(tensor.shape)):
                low, _, high = self._engine.get_tensor_profile_shape(name, 0)
                raise InputError(
                    f"{self._path} takes {name} of {tuple(low)} to {tuple(high)}, not {tuple(tensor.shape)}: "
                    "widen build_engine.tensorrt.profile and rebuild it."
                )
            context.set_tensor_address(name, tensor.data_ptr())
        device = next(iter(inputs.values())).device
        results = {
            name: torch.empty(tuple(context.get_tensor_shape(name)), dtype=self._dtypes[name], device=device)
            for name in self._outputs
        }
        for name, tensor in results.items():
            context.set_tensor_address(name, tensor.data_ptr())
        caller = torch.cuda.current_stream(device)
        stream.wait_stream(caller)
        if not context.execute_async_v3(stream.cuda_stream):
            raise RuntimeError(f"TensorRT could not run {self._path}; see its log above")
        for tensor in (*inputs.values(), *results.values()):
            tensor.record_stream(stream)  # its memory is not given to others before this stream is done with it
        caller.wait_stream(stream)
        return results


def _torch_dtype(trt: Any, dtype: Any) -> torch.dtype:
    known = {
        trt.DataType.FLOAT: torch.float32,
        trt.DataType.HALF: torch.float16,
        trt.DataType.BF16: torch.bfloat16,
        trt.DataType.INT64: torch.int64,
        trt.DataType.INT32: torch.int32,
        trt.DataType.BOOL: torch.bool,
    }
    if dtype not in known:
        raise InputError(f"an engine has a tensor of type {dtype}, which PyTorch lacks: rebuild it.")
    return known[dtype]
