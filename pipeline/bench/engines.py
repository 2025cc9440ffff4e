"""Models in the form of each runtime, built by the functions of the stages."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from torch import nn

from pipeline.bench.settings import CUDA, Combination, Settings
from pipeline.build_engine import ENGINES, BuildEngineConfig
from pipeline.core.artifact import Card, write_json
from pipeline.core.errors import InputError
from pipeline.data.shards import MANIFEST, Manifest, Shards, write_split
from pipeline.export import DECODER, ENCODER, export_decoder, export_encoder
from pipeline.models import build
from pipeline.models.sam import Sam
from pipeline.models.students import TEACHERS, load_checkpoint
from pipeline.prepare.procedural import SceneItem
from pipeline.quantize import PRECISIONS as LOWER
from pipeline.quantize import QuantizeConfig
from pipeline.quantize.calibration import SPLIT, CalibrationData
from pipeline.runtime import ENGINES as RUNTIMES
from pipeline.runtime import Segmenter

_QUANTIZE = QuantizeConfig(calibration_images=4, holdout_images=1, sensitivity_images=0, min_cosine=-1.0)
_OPSET = 18
_MAX_DIFFERENCE = 1.0
"""Tolerance between an exported file and PyTorch; loose, because random weights have no typical scale."""
_JPEG_QUALITY = 92


def refuses(runtime: str, precision: str) -> str | None:
    """Reason why a runtime and precision cannot run on a processor; None if they can."""
    if precision == "fp16":
        return "processors compute in fp32 or bf16; take one of these"
    return {
        ("torch", "int8"): "PyTorch runs no QDQ graph; take onnxruntime or openvino",
        ("onnxruntime", "bf16"): "ONNX Runtime computes in fp32 on CPUs; take openvino",
    }.get((runtime, precision))


def refuses_decoding(runtime: str, precision: str) -> str | None:
    """`refuses` for measurements that include the decoder."""
    if runtime in CUDA:
        return "the decoder is measured on processors"
    if (runtime, precision) == ("torch", "bf16"):
        return "the runtime torch decodes in fp32; take openvino"
    return refuses(runtime, precision)


def refuses_int8_too(runtime: str, precision: str) -> str | None:
    """`refuses_decoding` for measurements of the decoder only."""
    return "the decoder is never lowered to int8" if precision == "int8" else refuses_decoding(runtime, precision)


def model(settings: Settings, student: str) -> Sam:
    """Build a student with the weights of ``settings``, or a teacher with random weights, in evaluation mode.

    Raises:
        InputError: The checkpoint does not exist, or is another model's.
    """
    if settings.weights is None or student in TEACHERS:
        return build(student).eval()
    directory = settings.weights / student
    model_name = Card.read(directory).model
    if model_name != student:
        raise InputError(f"{directory} holds a checkpoint of {model_name}, not of {student}: check --weights.")
    return load_checkpoint(directory)


def scenes(directory: Path, split: str, count: int, side: int) -> Shards:
    """Write a dataset of rendered scenes with one split to an absent or empty directory."""
    directory.mkdir(exist_ok=True)
    items = (SceneItem(split, i, 0, side, _JPEG_QUALITY).prepare().packed for i in range(count))
    manifest = Manifest(splits={split: write_split(directory, split, items, count)})
    write_json(directory / MANIFEST, manifest.model_dump())
    return Shards(directory, split)


class Exported:
    """A model's ONNX files and engines, built at first use.

    Args:
        sam: The model; not changed.
        student: Its name.
        combinations: Runtimes and precisions of the engines.
        directory: Empty directory for all files.
    """

    def __init__(self, sam: Sam, student: str, combinations: Sequence[Combination], directory: Path) -> None:
        self._sam, self._student, self._directory = sam, student, directory
        self._int8 = any(precision == "int8" for _, precision in combinations)
        self._onnx = dict[str, Path]()

    def engine(self, runtime: str, precision: str, threads: int) -> tuple[Segmenter, Path]:
        """Build an engine; returns it and the directory of its files.

        bf16 runs the fp32 files in bf16; with an int8 encoder, everything else runs in fp32.
        """
        if not self._onnx:
            self._export()
        out = self._directory / f"{runtime}-{precision}"
        out.mkdir()
        config = BuildEngineConfig(
            engine=runtime,
            inference_precision="bf16" if precision == "bf16" else "f32",
            threads=threads,
            images=1,
            min_cosine=-1.0,
            min_mask_agreement=0.0,
            tensorrt=None,
        )
        ENGINES[runtime](config, self._onnx["int8" if precision == "int8" else "fp32"], out)
        load: dict[str, str | int | float | bool] = {
            "engine": runtime,
            "inference_precision": config.inference_precision,
            "image_size": self._sam.image_size,
            "input_size": self._sam.input_size,
            "embedding_size": self._sam.embedding_size,
        }
        card = Card(kind="engine", model=self._student, precision=precision, load=load, digest="", parents={})
        return RUNTIMES[runtime](out, card, "cpu", threads), out

    def _export(self) -> None:
        fp32 = self._onnx["fp32"] = self._directory / "fp32"
        fp32.mkdir()
        export_encoder(self._sam, fp32 / ENCODER, opset=_OPSET, tolerance=_MAX_DIFFERENCE)
        export_decoder(self._sam, fp32 / DECODER, opset=_OPSET, tolerance=_MAX_DIFFERENCE)
        if self._int8:
            lowered = self._onnx["int8"] = self._directory / "int8"
            shutil.copytree(fp32, lowered)
            asked = _QUANTIZE.calibration_images + _QUANTIZE.holdout_images
            images = scenes(self._directory / "images", SPLIT, asked, self._sam.input_size)
            LOWER["int8"](_QUANTIZE, lowered / ENCODER, CalibrationData(_QUANTIZE, self._sam, images))


def files_mib(directory: Path, stem: str) -> float:
    """Size of an engine's encoder or decoder on disk."""
    return sum(path.stat().st_size for path in directory.glob(f"{stem}.*")) / 2**20


def weights_mib(*parts: nn.Module) -> float:
    """Size of the parameters and buffers of modules, in MiB."""
    tensors = [tensor for part in parts for tensor in (*part.parameters(), *part.buffers())]
    return sum(tensor.numel() * tensor.element_size() for tensor in tensors) / 2**20
