"""What methods of quantization cost in accuracy, on equal terms.

Every method is given the same calibration images and is measured in the same simulation, on the validation split. Rows
are appended to a results file; those that are in it already are not measured again.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import onnx

from pipeline.bench import results_file
from pipeline.bench.ablations.settings import QuantizationSettings
from pipeline.core.artifact import Card
from pipeline.core.config import read_params, section
from pipeline.core.errors import InputError
from pipeline.core.progress import progress
from pipeline.data.shards import Shards
from pipeline.export import ENCODER, ExportConfig, export_encoder
from pipeline.models.sam import Sam
from pipeline.models.students import load_checkpoint
from pipeline.quantize import QuantizeConfig
from pipeline.quantize.calibration import SPLIT, CalibrationData
from pipeline.quantize.int8 import find_scales
from pipeline.quantize.layers import chosen_layers
from pipeline.quantize.qdq import Scales, Widths
from pipeline.quantize.rounding import kinds
from pipeline.quantize.scales.search import search
from pipeline.quantize.simulated import SimulatedSegmenter
from pipeline.runtime import Segmenter
from pipeline.runtime.pytorch import TorchSegmenter

METHODS: Mapping[str, tuple[str, str]] = {
    "max": ("onnxruntime", "max"),
    "percentile": ("onnxruntime", "percentile"),
    "entropy": ("onnxruntime", "entropy"),
    "modelopt_max": ("modelopt", "max"),
    "modelopt_entropy": ("modelopt", "entropy"),
    "search": ("search", "max"),
    "search_split": ("search", "max"),
}
"""Tool and calibration of each method; ``search_split`` has two ranges after softmax and GELU."""
WIDTHS: Mapping[str, Widths] = {
    "w8a8": Widths(8, 8),
    "w8a8_reduced": Widths(8, 8, reduce_range=True),
    "w6a6": Widths(6, 6),
    "w4a8": Widths(4, 8),
}
"""Bits of weights and of activations; ``reduced`` is what processors get (`quantize.reduce_range`)."""


@dataclass(frozen=True)
class Row:
    """One measurement."""

    student: str
    method: str
    width: str
    seed: int
    attention: bool


def quantization(settings: QuantizationSettings) -> list[dict[str, Any]]:
    """Measure all combinations of methods, widths and seeds that the results file lacks.

    Returns:
        The rows of the settings' students.

    Raises:
        InputError: A name is unknown, or an artifact is missing.
    """
    for what, names, known in (("method", settings.methods, METHODS), ("width", settings.widths, WIDTHS)):
        for name in names:
            if name not in known:
                raise InputError(f"unknown {what} {name!r}: there is {', '.join(known)}.")
    params = read_params()
    config, exporting = section(params, "quantize", QuantizeConfig), section(params, "export", ExportConfig)
    measured_rows = {_key(row): row for row in results_file.read(settings.out)}
    for seed in settings.seeds:
        for student in settings.students:
            asked = [Row(student, "fp32", "fp32", 0, False)]
            asked += [
                Row(student, method, width, seed, settings.attention)
                for width in settings.widths
                for method in settings.methods
            ]
            wanted = [row for row in asked if row not in measured_rows]
            for measured in (
                _measure(config, exporting, wanted, settings.checkpoints / student, settings.dataset) if wanted else ()
            ):
                measured_rows[_key(measured)] = measured
                results_file.append(settings.out, measured)
    return [row for key, row in measured_rows.items() if key.student in settings.students]


def table(measured: Sequence[Mapping[str, Any]]) -> str:
    """Mean over seeds, and the largest distance from it, in points of mIoU."""
    lines = [
        "| student | width | method | attention | box mIoU | click mIoU | seeds |",
        "|---|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, str, str, bool], list[Mapping[str, Any]]] = {}
    for row in measured:
        groups.setdefault((row["student"], row["width"], row["method"], row["attention"]), []).append(row)
    for (student, width, method, attention), members in sorted(groups.items()):
        figures = [
            results_file.mean_and_spread([100 * member[name] for member in members])
            for name in ("box_miou", "click_miou")
        ]
        both = "yes" if attention else "no"
        lines.append(f"| {student} | {width} | {method} | {both} | {' | '.join(figures)} | {len(members)} |")
    return "\n".join(lines)


def _key(row: Mapping[str, Any]) -> Row:
    return Row(**{name: row[name] for name in Row.__dataclass_fields__})


def _measure(
    config: QuantizeConfig, exporting: ExportConfig, wanted: Sequence[Row], checkpoint: Path, dataset: Path
) -> Iterator[dict[str, Any]]:
    student = wanted[0].student
    if Card.read(checkpoint).model != student:
        raise InputError(f"{checkpoint} holds no checkpoint of {student}: run `dvc repro align@{student}`.")
    sam, shards = load_checkpoint(checkpoint), Shards(dataset, SPLIT)
    with TemporaryDirectory(prefix="study-") as directory:
        encoder = Path(directory) / ENCODER
        export_encoder(sam, encoder, opset=exporting.opset, tolerance=exporting.max_difference)
        ranges = dict[tuple[str, int], Scales]()
        for row in progress(wanted, f"study {student}", "row"):
            segmenter: Segmenter = TorchSegmenter(sam)
            if row.method != "fp32":
                segmenter = _simulated(config.model_copy(update={"seed": row.seed}), row, sam, shards, encoder, ranges)
            yield vars(row) | results_file.accuracy(segmenter, dataset)


def _simulated(
    config: QuantizeConfig,
    row: Row,
    sam: Sam,
    shards: Shards,
    encoder: Path,
    ranges: dict[tuple[str, int], Scales],
) -> Segmenter:
    """The student at one width; tools find ranges once for all widths, kept in ``ranges``."""
    tool, calibration = METHODS[row.method]
    config = config.model_copy(update={"method": tool, "calibration": calibration})
    data, model = CalibrationData(config, sam, shards), onnx.load(encoder)
    chosen = chosen_layers(model, attention=row.attention, keep=config.keep)
    widths = WIDTHS[row.width]
    split = kinds(model) if row.method == "search_split" else {}
    if tool == "search":
        scales = search(config.search, model, chosen, data, widths=widths, seed=config.seed, split=split)
    else:
        known = ranges.get((row.method, row.seed))
        scales = find_scales(config, model, chosen, data, widths, known)
        ranges[row.method, row.seed] = scales
    return SimulatedSegmenter(sam, model, chosen, scales, split)
