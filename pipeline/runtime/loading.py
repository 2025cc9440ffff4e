"""Loading of artifacts with their runtime. A runtime's package is imported on first use."""

from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline.core.artifact import Card
from pipeline.core.bundled import directory_of
from pipeline.core.errors import InputError
from pipeline.models.sam import Sam
from pipeline.models.students import load_checkpoint
from pipeline.ops.cpu import check_exact
from pipeline.runtime.segmenter import Segmenter


def _onnxruntime(directory: Path, card: Card, device: str, threads: int | None) -> Segmenter:
    from pipeline.runtime.onnxruntime import OnnxRuntimeSegmenter

    if device == "cpu":
        check_exact(directory, card)
    return OnnxRuntimeSegmenter(directory, card, device=device, threads=threads)


def _openvino(directory: Path, card: Card, device: str, threads: int | None) -> Segmenter:
    from pipeline.runtime.openvino import OpenVinoSegmenter

    check_exact(directory, card)
    return OpenVinoSegmenter(directory, card, device=device, threads=threads)


def _tensorrt(directory: Path, card: Card, device: str, threads: int | None) -> Segmenter:
    from pipeline.runtime.tensorrt import TensorRtSegmenter

    return TensorRtSegmenter(directory, card, device=device, threads=threads)


ENGINES: Mapping[str, Callable[[Path, Card, str, int | None], Segmenter]] = {
    "openvino": _openvino,
    "onnxruntime": _onnxruntime,
    "tensorrt": _tensorrt,
}

DEVICES: Mapping[str, str] = {"tensorrt": "cuda"}
"""Default device of engines that do not run on a CPU."""


def load(
    source: Path | str | Sam,
    device: str | None = None,
    threads: int | None = None,
    *,
    precision: str = "fp32",
    execution: str = "eager",
) -> Segmenter:
    """Load an artifact or a model for inference.

    Args:
        source: Directory of a checkpoint, ONNX or engine artifact, ``bundled:MODEL`` for one of this package, or a SAM,
            which is moved to ``device`` and switched to evaluation mode.
        device: ``cpu``, ``cuda`` ... None: ``cuda`` for engines that run only there, otherwise ``cpu``.
        threads: CPU threads per call; None leaves the choice to the runtime. PyTorch's setting is process-wide.
        precision: Precision of PyTorch's image encoder: fp32, bf16 or fp16. ONNX and engine artifacts have a fixed one.
        execution: Execution of PyTorch's image encoder: ``eager``, ``compile``, or ``cuda_graph`` on a GPU.

    Raises:
        InputError: ``source`` is not such an artifact, its files do not match its card, a package or device is missing,
            or ``precision`` or ``execution`` were given for an artifact with a fixed one.
    """
    if threads is not None and threads < 1:
        raise InputError(f"threads must be at least 1, or None for the runtime's own choice, not {threads}.")
    if isinstance(source, Sam):
        return _pytorch(source, device or "cpu", threads, precision, execution)
    directory = directory_of(source)
    card = Card.verified(directory)  # cheap compared with loading
    if card.refusal:
        raise InputError(
            f"{directory} holds no model: {card.refusal.stage} refused it by {card.refusal}. {card.refusal.reason}"
        )
    device = device or DEVICES.get(str(card.load.get("engine")), "cpu")
    if card.kind == "checkpoint":
        return _pytorch(load_checkpoint(directory), device, threads, precision, execution)
    if (precision, execution) != ("fp32", "eager"):
        raise InputError(f"{directory} is an artifact of kind {card.kind!r}: precision and execution are in its files.")
    if card.kind == "onnx":
        return _onnxruntime(directory, card, device, threads)
    if card.kind == "engine":
        engine = card.load.get("engine")
        if engine not in ENGINES:
            raise InputError(f"{directory} was built for engine {engine!r}; this version runs {', '.join(ENGINES)}.")
        return ENGINES[str(engine)](directory, card, device, threads)
    raise InputError(
        f"{directory} is an artifact of kind {card.kind!r}, which holds no model: "
        "give the directory of a checkpoint, onnx or engine artifact, such as artifacts/align/<student>."
    )


def _pytorch(sam: Sam, device: str, threads: int | None, precision: str, execution: str) -> Segmenter:
    from pipeline.runtime.pytorch import TorchSegmenter

    return TorchSegmenter(sam, device=device, threads=threads, precision=precision, execution=execution)
