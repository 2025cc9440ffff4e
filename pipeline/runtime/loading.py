"""How an artifact finds its runtime. A runtime's package is imported when the first artifact needs it."""

from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline.core.artifact import Card
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
"""Where engines run that do not run on a processor."""


def load(
    source: Path | str | Sam,
    device: str | None = None,
    threads: int | None = None,
    *,
    precision: str = "fp32",
    execution: str = "eager",
) -> Segmenter:
    """Make ready to run what a stage left, or a model at hand.

    Args:
        source: Directory of a checkpoint, ONNX or engine artifact, or a SAM, which is moved to ``device`` and
            switched to evaluation.
        device: ``cpu``, ``cuda`` ... Engines say which ones they know. None: the processor, or ``cuda`` for engines
            that run nowhere else.
        threads: How many CPU threads one call may use; None leaves the choice to the runtime. PyTorch has one such
            number per process, so there it is set for everything.
        precision: Of PyTorch's image encoder: fp32, bf16 or fp16. ONNX and engine artifacts have theirs.
        execution: Of PyTorch's image encoder: ``eager``, ``compile``, or on a GPU ``cuda_graph``.

    Raises:
        InputError: ``source`` is no such artifact, its files are not those that its card was written for, a package or
            device is missing, or ``precision`` or ``execution`` were given for an artifact that has its own.
    """
    if threads is not None and threads < 1:
        raise InputError(f"threads must be at least 1, or None for the runtime's own choice, not {threads}.")
    if isinstance(source, Sam):
        return _pytorch(source, device or "cpu", threads, precision, execution)
    directory = Path(source)
    card = Card.verified(directory)  # a small part of the time that loading takes
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
