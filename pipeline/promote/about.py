"""What a registered version carries beside its engine, in one folder that explains, reproduces and publishes it.

``README.md`` (model card), ``LICENSE``, ``metrics.json`` (with confidence intervals), ``instances.parquet``,
``preprocessing.json``, ``lineage.json``, ``params.yaml``, ``dvc.lock``, ``onnx/`` and the comparison's ``plots/``.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.core.artifact import CARD, Card, write_json
from pipeline.core.config import PARAMS
from pipeline.core.stage import ARTIFACTS, DVC_LOCK
from pipeline.ops.gate import target_of
from pipeline.ops.metrics import BANDS, bands
from pipeline.promote import instances, lineage
from pipeline.promote.bootstrap import columns, resampled, simultaneous
from pipeline.promote.instances import Instances

README, LICENSE, METRICS, PREPROCESSING, ONNX = "README.md", "LICENSE", "metrics.json", "preprocessing.json", "onnx"
LICENCE = "apache-2.0"
"""SPDX id, in lower case as on the Hugging Face Hub, of the weights and of this package."""
CONFIDENCE, RESAMPLES = 0.95, 2000
_TEMPLATE = Path(__file__).with_name("model_card.md.j2")
_COSTS = ("latency_ms", "size_mib", "memory_mib")

Metrics = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Subject:
    """What is registered."""

    engine: Path
    card: Card
    numbers: Mapping[str, float]
    """The metrics that the gate checks."""
    processor: str
    results: Instances | None
    origin: Mapping[str, Any]
    """The lineage."""


def write(directory: Path, subject: Subject) -> None:
    """Fill an empty folder with what a version carries.

    Args:
        directory: The folder.
        subject: What is registered.
    """
    metrics, preprocessing = intervals(subject.numbers, subject.results), preprocessing_of(subject.card)
    write_json(directory / METRICS, metrics)
    write_json(directory / PREPROCESSING, preprocessing)
    write_json(directory / lineage.FILE, subject.origin)
    if subject.results is not None:
        subject.results.write(directory / instances.FILE)
    for path in filter(Path.is_file, (PARAMS, DVC_LOCK)):
        shutil.copyfile(path, directory / path.name)
    if (text := _license()) is not None:
        (directory / LICENSE).write_text(text)
    _copy_onnx(subject.card, directory / ONNX)
    if (plots := ARTIFACTS / "compare" / "plots").is_dir():
        shutil.copytree(plots, directory / "plots")
    (directory / README).write_text(model_card(subject, metrics, preprocessing).rstrip() + "\n")


def preprocessing_of(card: Card) -> dict[str, Any]:
    """How an image becomes the encoder's input, as segment-anything's ``Sam.preprocess`` does."""
    from pipeline.ops.geometry import PIXEL_MEAN, PIXEL_STD

    side = card.load.get("image_size")
    return {
        "image_size": side,
        "input_size": card.load.get("input_size", side),
        "channels": "RGB",
        "resize": "longest side to input_size, antialiased bilinear",
        "pixel_mean": list(PIXEL_MEAN),
        "pixel_std": list(PIXEL_STD),
        "pad": "zeros at the right and bottom, after normalisation",
        "prompts": "points and boxes xyxy in pixels of the image, scaled so that its longest side is image_size",
        "mask_threshold": 0.0,
    }


def intervals(numbers: Mapping[str, float], results: Instances | None) -> Metrics:
    """Metrics of a model with their confidence intervals.

    Args:
        numbers: Measured metrics; those of the teacher and of trivial masks are left out.
        results: Results per instance; without, mIoUs have no interval.

    Returns:
        By metric ``value`` and, if known, ``low`` and ``high``.
    """
    metrics: Metrics = {
        name: {"value": numbers[name]} for name in ("box_miou", "click_miou", *_COSTS) if name in numbers
    }
    error = numbers.get("latency_error_ms")
    if error is not None and "latency_ms" in metrics:
        latency = metrics["latency_ms"]
        metrics["latency_ms"] = latency | {"low": latency["value"] - error, "high": latency["value"] + error}
    if results is None:
        return metrics
    rng = np.random.default_rng(0)
    for prefix in dict.fromkeys(results.table["set"].tolist()):
        rows = results.table["set"] == prefix
        inside = [bands(area) for area in results.table["area"][rows].tolist()]
        for prompt in results.prompts:
            ious = results.table[f"{prompt}_iou"][rows]
            groups = ["", *BANDS]
            values = [np.where([not band or band in own for own in inside], ious, np.nan) for band in groups]
            part = resampled(np.stack(values, axis=1), results.table["image_id"][rows], RESAMPLES, rng)
            for i, band in enumerate(groups):
                if part.images[i] > 2:  # two images have no interval
                    ((low, high),) = simultaneous([columns(part, [i])], CONFIDENCE)[0].tolist()
                    name = "_".join(filter(None, (f"{prefix}{prompt}_miou", band)))
                    metrics[name] = {"value": float(part.means[i]), "low": max(0.0, low), "high": min(1.0, high)}
    return metrics


def model_card(subject: Subject, metrics: Metrics, preprocessing: Mapping[str, Any]) -> str:
    """The model card, with the Hugging Face Hub's metadata."""
    from huggingface_hub import EvalResult, ModelCard, ModelCardData

    card, origin = subject.card, subject.origin
    datasets = {} if subject.results is None else subject.results.datasets
    described = ", ".join(
        f"{about.get('name')}: {about.get('instances', '?')} instances, `{str(about.get('digest'))[:12]}`"
        for about in datasets.values()
    )
    results = [
        EvalResult(
            task_type="mask-generation",
            dataset_type="validation",
            dataset_name=str(next(iter(datasets.values()), {}).get("name", "validation")),
            metric_type=name,
            metric_value=round(metric["value"], 6),
        )
        for name, metric in metrics.items()
    ]
    data = ModelCardData(
        license=LICENCE,
        library_name="sam-distillery",
        pipeline_tag="mask-generation",
        tags=["segment-anything", "distillation", *filter(None, (card.precision, str(card.load.get("engine", ""))))],
        model_name=f"{card.model}-{card.precision}",
        eval_results=results,
    )
    content = ModelCard.from_template(
        data,
        template_str=_TEMPLATE.read_text(),
        student=card.model,
        precision=card.precision,
        engine=card.load.get("engine"),
        target=target_of(card.load.get("engine")),
        preprocessing=preprocessing,
        digest=card.digest,
        teacher=_teacher(origin),
        teacher_digest=lineage.digest_of(origin, "teacher"),
        data=described or "unknown",
        data_digest=lineage.digest_of(origin, "prepare"),
        commit=origin.get("commit"),
        metrics=metrics,
        processor=subject.processor,
        license=LICENCE.title(),
    )
    return str(content)


def _teacher(origin: Mapping[str, Any]) -> str:
    """Name of the teacher, if its artifact is known."""
    return next((str(entry["model"]) for entry in origin["artifacts"] if entry["target"] == "teacher"), "unknown")


def _copy_onnx(engine: Card, directory: Path) -> None:
    """Copy the ONNX files that an engine was built from, if they are those."""
    source = ARTIFACTS / "quantize" / str(engine.model) / str(engine.precision)
    if (source / CARD).is_file() and Card.read(source).digest == engine.parents.get("quantize"):
        shutil.copytree(source, directory)


def _license() -> str | None:
    """The licence's text, from the checkout or the installed package."""
    checkout = Path(__file__).parents[2] / LICENSE
    if checkout.is_file():
        return checkout.read_text()
    from importlib.metadata import PackageNotFoundError, files

    try:
        listed = files("sam-distillery") or []
    except PackageNotFoundError:
        return None
    return next((path.read_text() for path in listed if path.name == LICENSE), None)
