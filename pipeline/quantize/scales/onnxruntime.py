"""Ranges by ONNX Runtime's static quantizer."""

import logging
from collections.abc import Sequence
from pathlib import Path

import onnx
from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

from pipeline.quantize.calibration import Reader, quiet
from pipeline.quantize.config import QuantizeConfig
from pipeline.quantize.layers import Layer
from pipeline.quantize.qdq import read_scales

METHODS = {
    "max": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}

_LOGGER = logging.getLogger(__name__)


def onnxruntime(config: QuantizeConfig, source: Path, lowered: Sequence[Layer], reader: Reader) -> dict[str, float]:
    """Find the scales of activations, by tensor.

    Args:
        config: Its ``calibration`` is used.
        source: The fp32 file; a second file is written to its directory.
        lowered: The layers to quantize.
        reader: The calibration inputs.
    """
    out = source.with_name("onnxruntime.onnx")
    with quiet():
        quantize_static(
            source,
            out,
            reader,
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=sorted({layer.op for layer in lowered}),
            nodes_to_quantize=[layer.node for layer in lowered],
            per_channel=True,
            activation_type=QuantType.QInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=METHODS[config.calibration],
            extra_options={
                "ActivationSymmetric": True,
                "WeightSymmetric": True,
                "QuantizeBias": False,
                # Only inputs: outputs of products stay in floating point, and are rounded once instead of twice.
                "OpTypesToExcludeOutputQuantization": sorted({layer.op for layer in lowered}),
                "CalibTensorRangeSymmetric": True,
                "CalibPercentile": config.percentile,
                # One image at a time: activations of a whole split do not fit in memory.
                "CalibStridedMinMax": 1,
            },
        )
    scales = read_scales(onnx.load(out))
    for name in (name for name, scale in scales.items() if scale == 1.0):  # what it returns for an empty range
        _LOGGER.warning(
            "%s is 0 up to the percentile, so it is rounded to whole numbers: see the sensitivity report", name
        )
    return scales
