"""A student whose encoder is rounded in simulation, as a `pipeline.runtime.Segmenter`.

What is rounded is what the QDQ file of the same scales rounds, so the two agree; and what no file can say, the two
ranges after softmax and GELU, can be measured too.
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
        sam: Gives the decoder, which is not rounded.
        model: The encoder's ONNX file in fp32.
        lowered: The layers that are rounded.
        scales: Of all they read and weigh with.
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
        """What rounding does to each layer.

        Yields:
            A layer, what it reads in fp32, and what it gives: in fp32, where it alone is rounded, where all are.
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
