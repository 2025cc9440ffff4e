"""Sensitivity of layers to quantization: ``sensitivity.json`` and plots beside the ONNX files.

Everything is simulated on held-out images of the calibration split:

- ``layers``: signal-to-noise ratio (dB) and cosine of each layer's output, with only this layer rounded (``snr_db``,
  ``cosine``) and with all layers rounded (``accumulated_snr_db``, ``accumulated_cosine``);
- ``groups``: mIoU by box and by one click, and the embedding's cosine, with each group of layers in floating point;
- ``worst``: histograms of the inputs of the worst layers, and their quantization ranges;
- ``suggested``: layers for ``quantize.keep``, and the same figures with them kept.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import ModelProto
from torch import Tensor

from pipeline.core.artifact import write_json
from pipeline.core.progress import progress
from pipeline.ops import masks
from pipeline.ops.metrics import iou
from pipeline.quantize.calibration import CalibrationData
from pipeline.quantize.layers import Layer
from pipeline.quantize.qdq import Scales, qmax
from pipeline.quantize.sensitivity.plots import draw
from pipeline.quantize.simulated import SimulatedSegmenter
from pipeline.runtime import Predictor

FILE = "sensitivity.json"
_WORST = 4
_BINS = 64
_SUGGEST_BELOW_MEDIAN_DB = 10.0
"""A layer is suggested if its noise is ten times the median layer's."""
_SUGGEST_AT_MOST = 0.1
"""Largest share of the layers that is suggested."""


@dataclass(frozen=True)
class _Figures:
    box_miou: float
    click_miou: float
    embedding_cosine: float


def write_sensitivity(
    directory: Path,
    model: ModelProto,
    lowered: Sequence[Layer],
    scales: Scales,
    data: CalibrationData,
    *,
    images: int,
) -> None:
    """Measure, and write ``sensitivity.json`` and ``sensitivity_*.png``.

    Args:
        directory: Where to write.
        model: The encoder in fp32.
        lowered: The quantized layers.
        scales: Their scales.
        data: Held-out images and their masks.
        images: Number of held-out images.
    """
    held_out = data.held_out[:images]
    groups = dict.fromkeys(group(layer.name) for layer in lowered)
    exact = SimulatedSegmenter(data.sam, model, [], scales)
    rows, worst = _layers(model, lowered, scales, data, held_out)
    suggested = _suggest(rows)
    parts: dict[str, Sequence[Layer]] = {"fp32": [], "lowered": lowered}
    parts |= {f"without {name}": [x for x in lowered if group(x.name) != name] for name in groups}
    parts["suggested"] = [layer for layer in lowered if layer.name not in suggested]
    scores = {
        name: _measure(SimulatedSegmenter(data.sam, model, part, scales), exact, data, held_out)
        for name, part in progress(list(parts.items()), "sensitivity", "group")
    }
    report = {
        "images": len(held_out),
        "weight_bits": scales.widths.weight_bits,
        "activation_bits": scales.widths.activation_bits,
        "fp32": asdict(scores["fp32"]),
        "lowered": asdict(scores["lowered"]),
        "layers": rows,
        "groups": [
            {"name": name, "layers": sum(group(x.name) == name for x in lowered)} | asdict(scores[f"without {name}"])
            for name in groups
        ],
        "worst": worst,
        "suggested": {"keep": suggested} | asdict(scores["suggested"]),
    }
    write_json(directory / FILE, report)
    draw(report, directory)


def group(name: str) -> str:
    """The part of the encoder a layer belongs to: a stage, a block, or the neck."""
    words = name.split(".")
    for i, word in enumerate(words):
        if word.isdigit():
            return ".".join(words[: i + 1]) if words[0] != "neck" else "neck"
    return words[0]


def _layers(
    model: ModelProto,
    lowered: Sequence[Layer],
    scales: Scales,
    data: CalibrationData,
    held_out: Sequence[int],
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Compute the entries of all layers, and histograms of the worst."""
    segmenter = SimulatedSegmenter(data.sam, model, lowered, scales)
    noise = {layer.name: np.zeros(8) for layer in lowered}
    read: dict[str, list[Tensor]] = {layer.name: [] for layer in lowered}
    for index in held_out:
        image = torch.from_numpy(data.pixels(index))
        for layer, inputs, exact, alone, accumulated in segmenter.compare(image, lowered):
            noise[layer.name] += np.array([*_moments(exact, alone), *_moments(exact, accumulated)])
            flat = inputs[0].flatten()
            read[layer.name].append(flat[:: max(1, len(flat) // 20_000)])
    rows = list[dict[str, Any]]()
    for layer in lowered:
        of_one, of_all = noise[layer.name][:4], noise[layer.name][4:]
        rows.append(
            {
                "name": layer.name,
                "group": group(layer.name),
                "op": layer.op,
                "snr_db": _snr(of_one),
                "cosine": _cosine(of_one),
                "accumulated_snr_db": _snr(of_all),
                "accumulated_cosine": _cosine(of_all),
            }
        )
    by_name = {layer.name: layer for layer in lowered}
    names = [row["name"] for row in sorted(rows, key=lambda row: float(row["snr_db"]))[:_WORST]]
    return rows, [_histogram(by_name[name], torch.cat(read[name]), scales) for name in names]


def _histogram(layer: Layer, values: Tensor, scales: Scales) -> dict[str, Any]:
    counts, edges = np.histogram(values.numpy(), _BINS)
    reach = scales.activations[layer.inputs[0]] * qmax(scales.widths.bits_of([layer])[layer.inputs[0]])
    beyond = float((values.abs() > reach).float().mean())
    return {
        "name": layer.name,
        "edges": [round(float(edge), 6) for edge in edges],
        "counts": counts.tolist(),
        "range": round(reach, 6),
        "beyond_range": round(beyond, 6),
    }


def _moments(exact: Tensor, other: Tensor) -> tuple[float, float, float, float]:
    """Sums of squares of the exact output, the noise and the rounded output, and of the outputs' product."""
    a, b = exact.double().flatten(), other.double().flatten()
    return float(a @ a), float((a - b) @ (a - b)), float(b @ b), float(a @ b)


def _snr(sums: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    return round(10 * float(np.log10(max(sums[0], 1e-30) / max(sums[1], 1e-30))), 3)


def _cosine(sums: np.ndarray[Any, np.dtype[np.float64]]) -> float:
    return round(float(sums[3] / max(np.sqrt(sums[0] * sums[2]), 1e-30)), 6)


def _suggest(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    limit = float(np.median([row["snr_db"] for row in rows])) - _SUGGEST_BELOW_MEDIAN_DB
    low = sorted((row["snr_db"], row["name"]) for row in rows if row["snr_db"] < limit)
    return [name for _, name in low[: max(1, int(_SUGGEST_AT_MOST * len(rows)))]]


def _measure(
    segmenter: SimulatedSegmenter, exact: SimulatedSegmenter, data: CalibrationData, held_out: Sequence[int]
) -> _Figures:
    """MIoU by box and by one click: of three masks the one with the highest predicted IoU, against ground truth."""
    predictor, scores = Predictor(segmenter), {"boxes": list[float](), "clicks": list[float]()}
    cosines = []
    for index in held_out:
        sample, pixels = data.sample(index), torch.from_numpy(data.pixels(index))
        a, b = exact.encode(pixels).flatten(), segmenter.encode(pixels).flatten()
        cosines.append(float(torch.nn.functional.cosine_similarity(a, b, dim=0)))
        truths = [masks.decode(annotation["segmentation"]) for annotation in sample.annotations]
        if not truths:
            continue
        predictor.set_image(sample.image)
        clicks = np.array([[masks.center(truth)] for truth in truths], np.float32)
        answers = {
            "boxes": predictor.predict_batch(boxes=np.array([masks.box(truth) for truth in truths], np.float32)),
            "clicks": predictor.predict_batch(clicks, np.ones(clicks.shape[:2], np.int64)),
        }
        for kind, answer in answers.items():
            best = answer.iou_predictions.argmax(axis=1)
            ious = [iou(m[k], truth) for m, k, truth in zip(answer.masks, best, truths, strict=True)]
            scores[kind] += ious
    return _Figures(
        box_miou=round(float(np.mean(scores["boxes"] or [0.0])), 6),
        click_miou=round(float(np.mean(scores["clicks"] or [0.0])), 6),
        embedding_cosine=round(float(np.mean(cosines)), 6),
    )
