"""The command ``verify``: check that an engine reproduces its student's outputs on this machine.

Engines are compiled for the processor or GPU that loads them, and int8 arithmetic differs between processors. The
command repeats the engine's self-check (`pipeline.runtime.self_check`) and times its encoder against the fp32 engine of
the same student, since on some processors int8 is no faster.
"""

import json
import math
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from pipeline.core.artifact import CARD, Card
from pipeline.core.errors import GateError, InputError
from pipeline.evaluate.timing import Stopwatch
from pipeline.ops import cpu
from pipeline.ops.metrics import PAYS_FROM
from pipeline.runtime import Segmenter, load
from pipeline.runtime.self_check import Agreement, repeat

WARMUP = 3
RUNS = 20
_TURNS = 4
_MAX_FOREIGN_LOAD = 0.1


def verify(*, directory: Path, against: Path | None, device: str | None, threads: int | None, as_json: bool) -> str:
    """Repeat an engine's self-check on this machine.

    Args:
        directory: An engine artifact.
        against: The fp32 engine of the same student to compare timings with; None uses ``../fp32`` if it exists.
        device: Device as torch names it; None for the engine's default.
        threads: CPU threads per call; None leaves the choice to the runtime.
        as_json: Return JSON instead of text.

    Returns:
        The figures, the processor and library versions, as text or JSON.

    Raises:
        GateError: The engine misses the gate it was built under; the message has the figures.
        InputError: ``directory`` is not an intact engine, or cannot run on this machine.
    """
    card = Card.read(directory)
    if card.refusal:
        raise InputError(f"{directory} holds no engine: {card.refusal.stage} refused it by {card.refusal}.")
    if card.kind != "engine":
        raise InputError(
            f"{directory} is an artifact of kind {card.kind!r}, not an engine: name an artifact of build_engine."
        )
    engine = load(directory, device, threads)
    agreement = repeat(engine, directory)
    report = _report(directory, card, agreement) | _times(directory, engine, card, against, device, threads)
    text = json.dumps(report, indent=2, allow_nan=False) if as_json else _text(report)
    if not agreement.passes:
        sys.stdout.write(f"{text}\n")  # the figures are most useful in this case
        raise GateError(
            f"{directory} misses its gate on this machine ({report['processor']}): embedding cosine "
            f"{agreement.embedding_cosine:.4f} (at least {agreement.min_cosine:g}), mask IoU {agreement.mask_iou:.4f} "
            f"(at least {agreement.min_mask_iou:g})."
        )
    return text


def _report(directory: Path, card: Card, agreement: Agreement) -> dict[str, Any]:
    return {
        "artifact": str(directory),
        "model": card.model,
        "precision": card.precision,
        "engine": card.load.get("engine"),
        "weight_range": card.load.get(cpu.WEIGHT_RANGE),
        "processor": cpu.processor(),
        "instructions": list(cpu.instructions()),
        "exact_int8": cpu.has_exact_int8(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": cpu.versions(),
        "passes": agreement.passes,
        **{name: value if math.isfinite(value) else None for name, value in asdict(agreement).items()},
    }


def _times(
    directory: Path, engine: Segmenter, card: Card, against: Path | None, device: str | None, threads: int | None
) -> dict[str, Any]:
    """Encoder latency in milliseconds for one image, interleaved with the fp32 engine if there is one."""
    engines = {"encoder_ms": engine}
    if (other := _reference(directory, card, against)) is not None:
        engines["fp32_encoder_ms"] = load(other, device, threads)
    pixels = torch.zeros(1, 3, engine.input_size, engine.input_size)
    with torch.inference_mode():
        watches = {}
        for name, segmenter in engines.items():
            encode = _Encode(segmenter, pixels)
            for _ in range(WARMUP):
                encode()
            watches[name] = Stopwatch(encode, max_foreign_load=_MAX_FOREIGN_LOAD)
        for turn in range(1, _TURNS + 1):
            for watch in watches.values():
                watch.gather(turn * RUNS // _TURNS)
    timings = {name: watch.timing(RUNS) for name, watch in watches.items()}
    times: dict[str, Any] = {name: timing.median_ms for name, timing in timings.items()}
    return times | {"guarded": all(timing.guarded for timing in timings.values())}


def _reference(directory: Path, card: Card, against: Path | None) -> Path | None:
    """The fp32 engine to compare with: ``against``, or ``../fp32`` if it exists."""
    other = against or directory.parent / "fp32"
    if against is None and (card.precision == "fp32" or not (other / CARD).is_file()):
        return None
    reference = Card.read(other)
    if (reference.kind, reference.model, reference.precision) == ("engine", card.model, "fp32"):
        return other
    if against is None:
        return None
    raise InputError(f"{other} is not the fp32 engine of {card.model}: name that one with --against.")


class _Encode:
    """A synchronised call of an encoder."""

    def __init__(self, engine: Segmenter, pixels: torch.Tensor) -> None:
        self._engine, self._pixels = engine, pixels

    def __call__(self) -> None:
        self._engine.encode(self._pixels).cpu()


def _text(report: dict[str, Any]) -> str:
    """Format the report as text."""
    weight_range = report["weight_range"]
    int8 = "int8 products are exact" if report["exact_int8"] else "no VNNI: int8 weights must be within [-64, 64]"
    lines = [
        ("artifact", f"{report['artifact']}: {report['model']} {report['precision']} on {report['engine']}"),
        ("processor", f"{report['processor']} ({' '.join(report['instructions']) or 'unknown instructions'}); {int8}"),
        ("gpu", report["gpu"] or "none"),
        ("libraries", ", ".join(f"{name} {number}" for name, number in report["versions"].items())),
        ("int8 weights", "none" if weight_range is None else f"within [-{weight_range}, {weight_range}]"),
        (
            "embedding",
            f"cosine {_figure(report['embedding_cosine'])} to the student in fp32, the lowest of {report['images']} "
            f"images (at least {report['min_cosine']:g})",
        ),
        (
            "masks",
            f"IoU {_figure(report['mask_iou'])} with the student's, mean of {report['boxes']} boxes "
            f"(at least {report['min_mask_iou']:g})",
        ),
        ("encoder", _speed(report)),
        ("verdict", "passes" if report["passes"] else "MISSES THE GATE"),
    ]
    return "\n".join(f"{name:<13} {value}" for name, value in lines)


def _speed(report: dict[str, Any]) -> str:
    own, fp32 = report["encoder_ms"], report.get("fp32_encoder_ms")
    if fp32 is None:
        return f"{own:.1f} ms per image"
    if not report["guarded"]:
        return f"{own:.1f} ms per image, fp32 {fp32:.1f} ms, upper bounds: the machine was busy with other work"
    ratio = fp32 / own
    verdict = "is" if ratio >= PAYS_FROM else "does not pay on this machine:"
    return f"{own:.1f} ms per image, fp32 {fp32:.1f} ms: {report['precision']} {verdict} {ratio:.2f} times as fast"


def _figure(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f}"
