"""Static int8: the encoder's convolutions and matrix products in QDQ form, by ONNX Runtime's quantizer.

Symmetric signed weights per channel and symmetric signed activations per tensor, all zero points 0: the form that
TensorRT and OpenVINO both take. Norms, GELU, softmax, additions and transposed convolutions stay in floating point,
biases too. Where one of them reads a tensor that is rounded for a convolution, it reads the rounded one: OpenVINO
2026.4 loses accuracy on graphs that give both forms of a tensor to different readers. Weights are stored as int8. The
decoder is not touched: it is small, and makes the masks' borders.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper
from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantFormat, QuantType, quantize_static

from pipeline.data.shards import Shards
from pipeline.errors import InputError
from pipeline.geometry import to_input
from pipeline.progress import counter, progress
from pipeline.quantize.config import QuantizeConfig
from pipeline.quantize.export import normalise
from pipeline.runtime.onnxruntime import open_session

SPLIT = "calibration"
LOWERED = ("Conv", "MatMul", "Gemm")
METHODS = {
    "max": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}


def int8(config: QuantizeConfig, encoder: Path, images: Shards, input_size: int) -> dict[str, float]:
    """Replace ``encoder`` by its int8 form.

    Args:
        config: Which images and which ranges.
        encoder: ``encoder.onnx`` in fp32.
        images: The calibration split; no other is taken, since its images would be seen before they are measured on.
        input_size: Side of the encoder's input, in pixels.

    Returns:
        Figures of agreement on held-out images, and counts of lowered nodes.

    Raises:
        InputError: ``images`` is another split or too small, or the result is too far from fp32.
    """
    chosen, held_out = choose(config, images)
    spared = [] if config.quantize_attention else products(onnx.load(encoder))
    with TemporaryDirectory(dir=encoder.parent, prefix=".int8-") as directory:
        lowered = Path(directory) / encoder.name
        with _quiet():
            quantize_static(
                encoder,
                lowered,
                _Reader(images, chosen, input_size),
                quant_format=QuantFormat.QDQ,
                op_types_to_quantize=list(LOWERED),
                nodes_to_exclude=spared,
                per_channel=True,
                activation_type=QuantType.QInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=METHODS[config.calibration],
                extra_options={
                    "ActivationSymmetric": True,
                    "WeightSymmetric": True,
                    "QuantizeBias": False,
                    # Inputs alone: what follows a product stays in floating point, and rounds once instead of twice.
                    "OpTypesToExcludeOutputQuantization": list(LOWERED),
                    "CalibTensorRangeSymmetric": True,
                    "CalibPercentile": config.percentile,
                    # One image at a time: the histograms' activations of a whole split do not fit in memory.
                    "CalibStridedMinMax": 1,
                },
            )
        model = onnx.load(lowered)
        normalise(model)
        counts = inspect(model)
        lowered.write_bytes(model.SerializeToString(deterministic=True))
        agreement = _agreement(encoder, lowered, images, held_out, input_size)
        lowered.replace(encoder)
    if agreement["embedding_cosine"] < config.min_cosine:
        raise InputError(
            f"int8 embeddings agree with fp32 ones to a cosine of {agreement['embedding_cosine']:.4f} only, "
            f"quantize.min_cosine asks for {config.min_cosine}: try another quantize.calibration, or more images."
        )
    return agreement | counts


def choose(config: QuantizeConfig, images: Shards) -> tuple[list[int], list[int]]:
    """Indices of the images to calibrate on and of those held out, without overlap.

    Raises:
        InputError: ``images`` is not the calibration split, or has too few images.
    """
    if images.split != SPLIT:
        raise InputError(f"int8 calibrates on the split {SPLIT!r} only, not on {images.split!r}: hand that one over.")
    asked = config.calibration_images + config.holdout_images
    if len(images) < asked:
        raise InputError(
            f"{images.directory} has {len(images)} calibration images; quantize.calibration_images and holdout_images "
            f"ask for {config.calibration_images} + {config.holdout_images}: lower these, or prepare more."
        )
    order = [int(i) for i in np.random.default_rng(config.seed).permutation(len(images))]
    return order[: config.calibration_images], order[config.calibration_images : asked]


def products(model: onnx.ModelProto) -> list[str]:
    """Names of the matrix products that have no weight: attention's."""
    weights = {constant.name for constant in model.graph.initializer}
    return [n.name for n in model.graph.node if n.op_type == "MatMul" and not weights & set(n.input)]


def inspect(model: onnx.ModelProto) -> dict[str, float]:
    """Check that a QDQ graph has the form engines take, and count its nodes.

    Returns:
        ``quantized_nodes``: lowered nodes; ``quantize_linear_nodes`` and ``dequantize_linear_nodes``.

    Raises:
        InputError: A zero point is not 0, or a tensor is rounded that no operator of `LOWERED` reads.
    """
    constants = {c.name: c for c in model.graph.initializer}
    dequantized = set()
    for node in model.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            continue
        if len(node.input) > 2 and node.input[2] and numpy_helper.to_array(constants[node.input[2]]).any():
            raise InputError(f"{node.name} has a zero point other than 0: engines take symmetric int8 only.")
        if node.op_type == "DequantizeLinear":
            dequantized.add(node.output[0])
    readers = [node for node in model.graph.node if node.op_type in LOWERED and dequantized >= set(node.input[:2])]
    idle = sorted(dequantized.difference(*(node.input for node in readers)))
    if not readers:
        raise InputError(f"not one {', '.join(LOWERED)} of the encoder became int8: it would be fp32 by another name.")
    if idle:
        raise InputError(f"int8 tensors that no {', '.join(LOWERED)} reads: {', '.join(idle[:5])}.")
    kinds = [node.op_type for node in model.graph.node]
    return {
        "quantized_nodes": float(len(readers)),
        "quantize_linear_nodes": float(kinds.count("QuantizeLinear")),
        "dequantize_linear_nodes": float(kinds.count("DequantizeLinear")),
    }


class _Reader(CalibrationDataReader):  # type: ignore[misc]
    """Calibration images as the quantizer asks for them: a range of them, then one after the other."""

    def __init__(self, images: Shards, indices: Sequence[int], input_size: int) -> None:
        self._images, self._indices, self._side = images, indices, input_size
        self._bar = counter("calibrate", "image", len(indices))
        self.set_range(0, len(indices))

    def __len__(self) -> int:
        return len(self._indices)

    def set_range(self, start_index: int, end_index: int) -> None:
        """Go on with these images."""
        self._next, self._end = start_index, end_index

    def get_next(self) -> dict[str, Any] | None:
        """The next image, or None after the last."""
        if self._next >= self._end:
            if self._end == len(self._indices):
                self._bar.close()
            return None
        sample = self._images[self._indices[self._next]]
        self._next += 1
        self._bar.update()
        return {"image": to_input(sample.image, self._side)[None].numpy()}


def _agreement(
    reference: Path, lowered: Path, images: Shards, indices: Sequence[int], input_size: int
) -> dict[str, float]:
    """Mean and least cosine, and mean relative L1 difference, of embeddings on held-out images."""
    cosines, differences = [], []
    sessions = [open_session(path) for path in (reference, lowered)]
    for index in progress(indices, "compare", "image"):
        feeds = {"image": to_input(images[index].image, input_size)[None].numpy()}
        a, b = (session.run(None, feeds)[0].ravel().astype(np.float64) for session in sessions)
        cosines.append(float(a @ b / max(np.linalg.norm(a) * np.linalg.norm(b), 1e-30)))
        differences.append(float(np.abs(a - b).sum() / max(np.abs(a).sum(), 1e-30)))
    return {
        "embedding_cosine": float(np.mean(cosines)),
        "embedding_cosine_min": min(cosines),
        "embedding_relative_l1": float(np.mean(differences)),
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """The quantizer prints, and advises a preparation that the export has already done: keep both off the screen."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.ERROR)
    try:
        with redirect_stdout(StringIO()):
            yield
    finally:
        root.setLevel(level)
