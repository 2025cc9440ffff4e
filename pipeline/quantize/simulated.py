"""A student with a fake-quantized encoder, as a `pipeline.runtime.Segmenter`.

It rounds the same tensors as the QDQ file of the same scales, so the two agree. It also runs what no file can express:
two ranges after softmax and GELU.
"""

from collections.abc import Iterator, Mapping, Sequence

import torch
from jaxtyping import Float
from onnx import ModelProto
from torch import Tensor

from pipeline.models.sam import Sam
from pipeline.quantize.graph import Graph
from pipeline.quantize.layers import Layer, weights
from pipeline.quantize.qdq import Scales, rounded
from pipeline.quantize.rounding import Kind, rounders
from pipeline.runtime.pytorch import TorchSegmenter


class SimulatedSegmenter(TorchSegmenter):
    """Runs a SAM in PyTorch with an encoder of any width. See `pipeline.runtime.Segmenter`.

    Args:
        sam: Its decoder is used, without rounding.
        model: The encoder's ONNX file in fp32.
        lowered: The quantized layers.
        scales: Scales of all their tensors and weights.
        split: Tensors with two ranges, by name.
    """

    def __init__(
        self,
        sam: Sam,
        model: ModelProto,
        lowered: Sequence[Layer],
        scales: Scales,
        split: Mapping[str, Kind] | None = None,
    ) -> None:
        super().__init__(sam)
        self._graph = Graph(model)
        values = weights(model, lowered)
        self._constants = dict[str, Tensor]()
        for layer in lowered:
            if layer.weight:
                steps = scales.weights[layer.weight]
                shape = [-1 if i == layer.axis else 1 for i in range(values[layer.weight].ndim)]
                integers = rounded(values[layer.weight], steps, layer.axis, scales.widths.weight_qmax)
                self._constants[layer.weight] = torch.from_numpy(integers.astype("float32") * steps.reshape(shape))
        read = {name: scales.activations[name] for layer in lowered for name in layer.inputs}
        self._rounding = rounders(read, scales.widths.bits_of(lowered), split or {})

    @torch.inference_mode()
    def compare(
        self, images: Float[Tensor, "b 3 s s"], lowered: Sequence[Layer]
    ) -> Iterator[tuple[Layer, list[Tensor], Tensor, Tensor, Tensor]]:
        """Compare each layer's output with and without rounding.

        Yields:
            A layer, its inputs in fp32, and its outputs: in fp32, with this layer rounded, with all layers rounded.
        """
        names = {name for layer in lowered for name in (*layer.inputs, layer.output)}
        exact = self._graph(images, keep=names)
        rounded = self._graph(images, self._rounding, self._constants, keep={layer.output for layer in lowered})
        for layer in lowered:
            inputs = [exact[name] for name in layer.inputs]
            values = {name: self._rounding[name](exact[name]) for name in layer.inputs}
            alone = self._graph.node(layer.node, values | self._constants)
            yield layer, inputs, exact[layer.output], alone, rounded[layer.output]

    @torch.inference_mode()
    def encode(self, images: Float[Tensor, "b 3 s s"]) -> Float[Tensor, "b 256 g g"]:
        """See `pipeline.runtime.Segmenter.encode`."""
        return self._graph(images, self._rounding, self._constants)[self._graph.output]
