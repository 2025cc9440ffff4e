"""Quantization of the mask decoder: optional, since the decoder is small and determines the masks' borders.

The metrics show its cost: how much masks change on held-out images, given the same embeddings. Layers of the prompt
encoder stay in floating point: with 8 bits a point's coordinate would be off by up to 4 of 1024 pixels. Products of two
activations do too, since they are not attention's own: the export folds projections into them
(`pipeline.models.decoder`).
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
import torch
from onnx import ModelProto
from onnxruntime import InferenceSession
from torch import Tensor

from pipeline.core.errors import InputError
from pipeline.core.progress import progress
from pipeline.export.form import save
from pipeline.quantize.calibration import CalibrationData, Feeds
from pipeline.quantize.config import QuantizeConfig
from pipeline.quantize.fp16 import narrowed
from pipeline.quantize.int8 import WIDTHS, find_scales
from pipeline.quantize.layers import Layer, chosen_layers
from pipeline.quantize.qdq import Widths, write_qdq
from pipeline.quantize.task import drawn_likelihood, prompts
from pipeline.runtime.onnxruntime import open_session

EMBEDDING = "image_embedding"


def lower_decoder(
    config: QuantizeConfig, decoder: Path, encoder: Path, data: CalibrationData, *, precision: str
) -> dict[str, float]:
    """Replace ``decoder`` by its form in ``config.decoder``.

    Args:
        config: See `QuantizeConfig`.
        decoder: ``decoder.onnx`` in fp32.
        encoder: ``encoder.onnx`` in its final precision; computes the embeddings.
        data: Images and prompts.
        precision: The encoder's.

    Returns:
        ``decoder_mask_agreement``, the mean IoU of masks with the fp32 decoder's, and ``decoder_iou_difference``, the
        mean absolute difference of predicted IoUs; empty for fp32.
    """
    form = _form(config, precision)
    if form == "fp32":
        return {}
    session = open_session(encoder, simulate=True)
    with TemporaryDirectory(dir=decoder.parent, prefix=".decoder-") as directory:
        lowered = Path(directory) / decoder.name
        if form == "fp16":
            save(narrowed(decoder, decoder_feeds(session, data, data.chosen[0]), Path(directory)), lowered)
        else:
            widths = Widths(*WIDTHS[form], config.reduce_range)
            quantized = _fake_quantized(config, decoder, widths, DecoderData(session, data))
            save(quantized, lowered, reduce_range=config.reduce_range)
        figures = _price(decoder, lowered, session, data)
        lowered.replace(decoder)
    return figures


def _form(config: QuantizeConfig, precision: str) -> str:
    """Return the decoder's precision.

    Raises:
        InputError: ``same`` asks for a precision that the decoder does not have.
    """
    if config.decoder != "same":
        return config.decoder
    form = "int8" if precision == "int8_fp16" else precision
    if form not in ("fp32", "fp16", *WIDTHS):
        raise InputError(f"quantize.decoder is same, but no decoder is {precision}: set it to fp32, fp16 or int8.")
    return form


def _fake_quantized(config: QuantizeConfig, decoder: Path, widths: Widths, data: "DecoderData") -> ModelProto:
    model = onnx.load(decoder)
    chosen = decoder_layers(model)
    return write_qdq(model, chosen, find_scales(config, model, chosen, data, widths))


def decoder_layers(model: ModelProto) -> list[Layer]:
    """Choose the decoder's layers to quantize: those with a weight that read image or output tokens."""
    weighted = {layer.node: layer for layer in chosen_layers(model, attention=False, keep=())}
    dimensions = {c.name: len(c.dims) for c in model.graph.initializer}
    tokens, chosen = {EMBEDDING}, list[Layer]()
    for node in model.graph.node:
        layer, reads_tokens = weighted.get(node.name), not tokens.isdisjoint(node.input)
        # Products folded with a weight per head have three axes, for which engines do not support scales per channel.
        # Layers that read a mask prompt have no calibration data.
        if layer and reads_tokens and dimensions[str(layer.weight)] in (2, 4) and "mask_down" not in str(layer.weight):
            chosen.append(layer)
        if layer or reads_tokens:
            tokens.update(node.output)
    return chosen


class DecoderData:
    """The decoder's calibration data: embeddings that the encoder computes, and prompts.

    Args:
        encoder: Session of ``encoder.onnx`` in its final precision.
        data: Images and prompts.
    """

    def __init__(self, encoder: InferenceSession, data: CalibrationData) -> None:
        self._encoder, self._data = encoder, data

    @property
    def chosen(self) -> Sequence[int]:
        """Indices of the images to calibrate on."""
        return self._data.chosen

    def feeds(self, index: int) -> Feeds:
        """The decoder's inputs by name."""
        return decoder_feeds(self._encoder, self._data, index)

    def loss(self, outputs: Sequence[Tensor], index: int, generator: torch.Generator) -> Tensor:
        """The task's loss of masks and predicted IoUs. See `pipeline.quantize.task.likelihood`."""
        return drawn_likelihood(outputs[0], outputs[1], generator)


def decoder_feeds(session: InferenceSession, data: CalibrationData, index: int) -> dict[str, Any]:
    """The decoder's inputs by name: an image's embedding, and boxes and clicks of its first instances."""
    coords, labels = (values.numpy() for values in prompts(data.sample(index), data.sam.image_size))
    logits = 4 * data.sam.embedding_size
    return {
        EMBEDDING: session.run(None, dict(data.feeds(index)))[0],
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
