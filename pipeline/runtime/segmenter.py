"""What every runtime offers, and how an artifact finds its runtime.

A `Segmenter` is a SAM cut where deployments cut it: images to embeddings, and an embedding with prompts to masks. Both
halves work in the model's own frames; `pipeline.runtime.Predictor` brings photographs and prompts there and masks back.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Protocol, runtime_checkable

from jaxtyping import Float
from torch import Tensor

from pipeline.artifact import Card
from pipeline.errors import InputError
from pipeline.models.sam import Sam


@runtime_checkable
class Segmenter(Protocol):
    """A SAM that runs somewhere. Calls may come from several threads at once."""

    image_size: int
    """Side of the prompt frame, in pixels."""
    input_size: int
    """Side of the image encoder's input, in pixels."""
    embedding_size: int
    """Side g of the image embedding, in cells."""

    def encode(self, images: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b 256 g g"]:
        """Image embeddings of images as `pipeline.geometry.to_input` makes them."""

    def decode(
        self,
        image_embedding: Float[Tensor, "1 256 g g"],
        point_coords: Float[Tensor, "p n 2"],
        point_labels: Float[Tensor, "p n"],
        mask_input: Float[Tensor, "p 1 m m"] | None = None,
    ) -> tuple[Float[Tensor, "p 4 m m"], Float[Tensor, "p 4"]]:
        """Low-resolution logits and predicted IoUs of P prompts on one image.

        Args:
            image_embedding: One of `encode`'s.
            point_coords: x and y in the prompt frame.
            point_labels: 1 foreground, 0 background, 2 and 3 a box's corners, -1 padding.
            mask_input: Logits of an earlier mask, side m = 4g.

        Returns:
            Four masks per prompt: token 0 is the single mask, 1 to 3 the multimask outputs.
        """


def _onnxruntime(directory: Path, card: Card, device: str, threads: int | None) -> Segmenter:
    from pipeline.runtime.onnxruntime import OnnxRuntimeSegmenter

    return OnnxRuntimeSegmenter(directory, card, device=device, threads=threads)


def _openvino(directory: Path, card: Card, device: str, threads: int | None) -> Segmenter:
    from pipeline.runtime.openvino import OpenVinoSegmenter

    return OpenVinoSegmenter(directory, card, device=device, threads=threads)


ENGINES: Mapping[str, Callable[[Path, Card, str, int | None], Segmenter]] = {
    "openvino": _openvino,
    "onnxruntime": _onnxruntime,
}


def load(source: Path | str | Sam, device: str = "cpu", threads: int | None = None) -> Segmenter:
    """Make ready to run what a stage left, or a model at hand.

    Args:
        source: Directory of a checkpoint, ONNX or engine artifact, or a SAM, which is moved to ``device`` and
            switched to evaluation.
        device: ``cpu``, ``cuda`` ... Engines say which ones they know.
        threads: How many CPU threads one call may use; None leaves the choice to the runtime. PyTorch has one such
            number per process, so there it is set for everything.

    Raises:
        InputError: ``source`` is no such artifact, its files are damaged, or a package or device is missing.
    """
    if threads is not None and threads < 1:
        raise InputError(f"threads must be at least 1, or None for the runtime's own choice, not {threads}.")
    if isinstance(source, Sam):
        return _pytorch(source, device, threads)
    directory = Path(source)
    card = Card.read(directory)
    if card.kind == "checkpoint":
        from pipeline.models.students import load_checkpoint

        return _pytorch(load_checkpoint(directory), device, threads)
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


def _pytorch(sam: Sam, device: str, threads: int | None) -> Segmenter:
    from pipeline.runtime.pytorch import TorchSegmenter

    return TorchSegmenter(sam, device=device, threads=threads)


def sizes(directory: Path, card: Card) -> tuple[int, int, int]:
    """``image_size``, ``input_size`` and ``embedding_size`` of an exported model, read off its card.

    Raises:
        InputError: The card does not say.
    """
    found = [card.load.get(key) for key in ("image_size", "input_size", "embedding_size")]
    if not all(isinstance(value, int) and value > 0 for value in found):
        raise InputError(f"the card of {directory} lacks image_size, input_size or embedding_size: make it anew.")
    image_size, input_size, embedding_size = (int(value) for value in found if value is not None)
    return image_size, input_size, embedding_size


def present(directory: Path, *names: str) -> None:
    """Check that an artifact has all its files.

    Raises:
        InputError: One is missing.
    """
    for name in names:
        if not (directory / name).is_file():
            raise InputError(f"{directory / name} does not exist: run `dvc repro` or `dvc pull`.")


def missing_package(package: str, error: ImportError) -> InputError:
    """What to say when a runtime's package cannot be imported."""
    return InputError(f"this artifact runs on {package}, which cannot be imported ({error}): `pip install {package}`.")
