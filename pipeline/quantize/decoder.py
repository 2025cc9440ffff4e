"""Quantization of the mask decoder: optional, since the decoder is small and determines the masks' borders.

The metrics show its cost: how much masks change on held-out images, given the same embeddings.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from onnxruntime import InferenceSession

from pipeline.core.progress import progress
from pipeline.export.form import save
from pipeline.quantize.calibration import CalibrationData, Reader
from pipeline.quantize.config import QuantizeConfig
from pipeline.quantize.fp16 import narrowed
from pipeline.quantize.int8 import CALIBRATORS
from pipeline.quantize.layers import chosen_layers, weights
from pipeline.quantize.qdq import Scales, Widths, weight_scales, write_qdq
from pipeline.quantize.task import prompts
from pipeline.runtime.onnxruntime import open_session


def lower_decoder(config: QuantizeConfig, decoder: Path, encoder: Path, data: CalibrationData) -> dict[str, float]:
    """Replace ``decoder`` by its form in ``config.decoder``.

    Args:
        config: See `QuantizeConfig`.
        decoder: ``decoder.onnx`` in fp32.
        encoder: ``encoder.onnx`` in its final precision; computes the embeddings.
        data: Images and prompts.

    Returns:
        ``decoder_mask_agreement``, the mean IoU of masks with the fp32 decoder's, and ``decoder_iou_difference``, the
        mean absolute difference of predicted IoUs; empty for fp32.
    """
    if config.decoder == "fp32":
        return {}
    session = open_session(encoder, simulate=True)
    with TemporaryDirectory(dir=decoder.parent, prefix=".decoder-") as directory:
        lowered = Path(directory) / decoder.name
        if config.decoder == "fp16":
            save(
                narrowed(decoder, decoder_feeds(session, data, data.chosen[0]), Path(directory)),
                lowered,
            )
        else:
            _int8(config, decoder, lowered, session, data)
        figures = _price(decoder, lowered, session, data)
        lowered.replace(decoder)
    return figures


def _int8(
    config: QuantizeConfig, decoder: Path, lowered: Path, session: InferenceSession, data: CalibrationData
) -> None:
    model = onnx.load(decoder)
    values = {c.name: len(c.dims) for c in model.graph.initializer}
    # Products folded with a weight per head have three axes, for which engines do not support scales per channel.
    chosen = [
        layer
        for layer in chosen_layers(model, attention=False, keep=())
        # Layers that read a mask prompt stay in floating point, because calibration has none.
        if values[str(layer.weight)] in (2, 4) and "mask_downscaling" not in str(layer.weight)
    ]
    copy = lowered.with_name("source.onnx")
    onnx.save(model, copy)
    method = CALIBRATORS.get(config.method, CALIBRATORS["onnxruntime"])
    reader = Reader(lambda index: decoder_feeds(session, data, index), data.chosen)
    activations, kernels = method(config, copy, chosen, reader), weights(model, chosen)
    widths = Widths(reduce_range=config.reduce_range)
    scales = {
        str(layer.weight): weight_scales(kernels[str(layer.weight)], layer.axis, widths.weight_qmax) for layer in chosen
    }
    save(write_qdq(model, chosen, Scales(activations, scales, widths)), lowered, reduce_range=config.reduce_range)


def decoder_feeds(session: InferenceSession, data: CalibrationData, index: int) -> dict[str, Any]:
    """The decoder's inputs by name: an image's embedding, and boxes and clicks of its first instances."""
    coords, labels = (values.numpy() for values in prompts(data.sample(index), data.sam.image_size))
    logits = 4 * data.sam.embedding_size
    return {
        "image_embedding": session.run(None, dict(data.feeds(index)))[0],
        "point_coords": coords,
        "point_labels": labels,
        "mask_input": np.zeros((1, 1, logits, logits), np.float32),
        "has_mask_input": np.zeros(1, np.float32),
    }


def _price(reference: Path, lowered: Path, session: InferenceSession, data: CalibrationData) -> dict[str, float]:
    agreements, differences = [], []
    decoders: Sequence[InferenceSession] = [open_session(path, simulate=True) for path in (reference, lowered)]
    for index in progress(data.held_out, "compare decoders", "image"):
        feeds: Mapping[str, Any] = decoder_feeds(session, data, index)
        (a, scores_a), (b, scores_b) = (decoder.run(None, feeds) for decoder in decoders)
        union, shared = ((a > 0) | (b > 0)).sum((2, 3)), ((a > 0) & (b > 0)).sum((2, 3))
        agreements.append(float(np.where(union > 0, shared / np.maximum(union, 1), 1.0).mean()))
        differences.append(float(np.abs(scores_a - scores_b).mean()))
    return {
        "decoder_mask_agreement": float(np.mean(agreements)),
        "decoder_iou_difference": float(np.mean(differences)),
    }
