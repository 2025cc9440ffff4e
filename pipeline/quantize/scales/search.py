"""TinySAM's quantizer: alternating search of the scales of weights and activations, weighted by the task's Hessian.

Source: Shu et al. 2023, "TinySAM" (arXiv 2312.13789): uniform symmetric rounding, 100 candidates from 0.01 to 1.2 of
the largest magnitude, 3 rounds of alternating search, and a distance of layer outputs weighted by a Hessian of the
task's loss. Its code is not published. What differs: a weight has a scale per output channel, as engines require, each
searched separately; distances are computed on sampled rows (module `rows`); a tensor that several nodes read has one
scale, which minimizes the sum of their distances; a scale changes only if that lowers the distance. The paper's two
ranges after softmax and GELU are ``split``, for simulation only.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from jaxtyping import Float
from onnx import ModelProto
from torch import Tensor

from pipeline.core.progress import counter
from pipeline.quantize.calibration import SearchData
from pipeline.quantize.config import SearchConfig
from pipeline.quantize.layers import Layer, weights
from pipeline.quantize.qdq import Scales, Widths, qmax
from pipeline.quantize.rounding import Kind, fake_quantize
from pipeline.quantize.scales.rows import Samples, collect

_AT_ONCE = 1 << 18
"""Maximum number of values of the candidates evaluated together, so that they fit in the processor's cache."""


def search(
    config: SearchConfig,
    model: ModelProto,
    lowered: Sequence[Layer],
    data: SearchData,
    *,
    widths: Widths,
    seed: int,
    split: Mapping[str, Kind] | None = None,
) -> Scales:
    """Search the scales of layers.

    Args:
        config: Candidates, rounds and rows.
        model: The encoder or the decoder in fp32.
        lowered: The layers to quantize.
        data: Calibration images with the task's loss.
        widths: Bits of weights and activations.
        seed: Seed of rows and drawn masks.
        split: Tensors with two ranges, by name.
    """
    samples = collect(model, lowered, data, rows=config.rows, seed=seed)
    return Search(config, model, lowered, samples, widths, split or {}).run()


class Search:
    """State of a search: one scale per tensor and per channel of each weight."""

    def __init__(
        self,
        config: SearchConfig,
        model: ModelProto,
        lowered: Sequence[Layer],
        samples: Samples,
        widths: Widths,
        split: Mapping[str, Kind],
    ) -> None:
        self._config, self._layers, self._samples, self._split = config, lowered, samples, split
        self._widths, self._bits = widths, widths.bits_of(lowered)
        self._factors = torch.linspace(config.lowest, config.highest, config.candidates)
        values = weights(model, lowered)
        self._matrix = {
            layer.node: _matrix(values[layer.weight], layer, len(samples.rows[layer.node].left[0]))
            for layer in lowered
            if layer.weight
        }
        self._activations = {
            name: torch.tensor(max(peak, 1e-12) / qmax(self._bits[name])) for name, peak in samples.peaks.items()
        }
        top = widths.weight_qmax
        self._weights = {n: w.abs().amax(-1, keepdim=True).clamp(1e-12) / top for n, w in self._matrix.items()}
        self._left = {node: torch.cat(rows.left, dim=-2) for node, rows in samples.rows.items()}
        self._right = {node: torch.cat(rows.right) for node, rows in samples.rows.items() if rows.right}
        self._hessian = {node: torch.cat(rows.hessian, dim=-2) for node, rows in samples.rows.items()}
        for layer in lowered:
            if not layer.weight:  # slices of different images are separate matrices
                self._left[layer.node] = torch.cat(samples.rows[layer.node].left)
                self._hessian[layer.node] = torch.cat(samples.rows[layer.node].hessian)
        self._exact = {layer.node: self._left[layer.node] @ self._other(layer, 0, exact=True) for layer in lowered}

    def run(self) -> Scales:
        """Run all rounds."""
        readers = {name: [x for x in self._layers if name in x.inputs] for name in self._activations}
        work = self._config.rounds * (len(readers) + len(self._matrix))
        bar = counter("search", "scale", work)
        for _ in range(self._config.rounds):
            for layer in self._layers:
                if layer.weight:
                    self._search_weight(layer)
                    bar.update()
            for name, nodes in readers.items():
                self._search_activation(name, nodes)
                bar.update()
        bar.close()
        return Scales(
            activations={name: float(scale) for name, scale in self._activations.items()},
            weights={
                str(layer.weight): self._weights[layer.node].flatten().numpy().astype(np.float32)
                for layer in self._layers
                if layer.weight
            },
            widths=self._widths,
        )

    def _other(self, layer: Layer, side: int, *, exact: bool = False) -> Tensor:
        """The other factor of one side of a product, ``(groups, k, n)`` or ``(groups, rows, k)``."""
        if side == 1:
            return self._rounded(self._left[layer.node], layer.inputs[0])
        if layer.weight:
            matrix = self._matrix[layer.node]
            return (matrix if exact else _round_weight(matrix, self._weights[layer.node], self._widths.weight_qmax)).mT
        right = self._right[layer.node]
        return right if exact else self._rounded(right, layer.inputs[1])

    def _rounded(self, x: Tensor, name: str) -> Tensor:
        return fake_quantize(x, self._activations[name], self._bits[name], self._split.get(name, "plain"))

    def _search_weight(self, layer: Layer) -> None:
        left, matrix, now = self._other(layer, 1), self._matrix[layer.node], self._weights[layer.node]
        peak = matrix.abs().amax(-1, keepdim=True).clamp(1e-12) / self._widths.weight_qmax
        scales = torch.cat([now[None], self._factors.reshape(-1, 1, 1, 1) * peak])  # (candidates, groups, n, 1)
        exact, hessian = self._exact[layer.node], self._hessian[layer.node]
        distances = [
            ((left @ _round_weight(matrix, part, self._widths.weight_qmax).mT - exact).square_() * hessian).sum(-2)
            for part in scales.split(_chunk(matrix.numel(), exact.numel()))
        ]
        best = torch.cat(distances).argmin(0)  # (groups, n)
        self._weights[layer.node] = scales.gather(0, best[None, ..., None])[0]

    def _search_activation(self, name: str, readers: Sequence[Layer]) -> None:
        kind = self._split.get(name, "plain")
        peak = max(self._samples.peaks[name], 1e-12) / qmax(self._bits[name])
        scales = torch.cat([self._activations[name][None], self._factors * peak])
        distances = torch.zeros(len(scales))
        for layer in readers:
            for side in (i for i, read in enumerate(layer.inputs) if read == name):
                distances += self._product_distances(layer, side, scales, kind)
        if name in self._samples.values:
            values, hessian = self._samples.values[name]
            distances += torch.stack(
                [
                    ((fake_quantize(values, scale, self._bits[name], kind) - values).square_() * hessian).sum()
                    for scale in scales
                ]
            )
        self._activations[name] = scales[distances.argmin()]

    def _product_distances(
        self, layer: Layer, side: int, scales: Float[Tensor, " c"], kind: Kind
    ) -> Float[Tensor, " c"]:
        own = self._right[layer.node] if side else self._left[layer.node]
        other, exact, hessian = self._other(layer, side), self._exact[layer.node], self._hessian[layer.node]
        bits, distances = self._bits[layer.inputs[side]], []
        for part in scales.split(_chunk(own.numel(), exact.numel())):
            candidates = fake_quantize(own, part.reshape(-1, *[1] * own.ndim), bits, kind)
            products = other @ candidates if side else candidates @ other
            distances.append(((products - exact).square_() * hessian).flatten(1).sum(1))
        return torch.cat(distances)


def _matrix(weight: Float[np.ndarray, "..."], layer: Layer, groups: int) -> Float[Tensor, "groups n k"]:
    matrix = torch.from_numpy(np.moveaxis(weight, layer.axis, 0).copy())
    return matrix.reshape(groups, matrix.shape[0] // groups, -1)


def _round_weight(weight: Tensor, scale: Tensor, top: int) -> Tensor:
    """Fake-quantize a weight as `pipeline.quantize.qdq.rounded` does, with a symmetric range."""
    return (weight / scale).round_().clamp_(-top, top).mul_(scale)


def _chunk(*numbers: int) -> int:
    return max(1, _AT_ONCE // max(numbers))
