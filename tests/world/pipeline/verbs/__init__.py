"""Verbs that stand in for the real ones: they write a few bytes and fail on request."""

import errno
import time
from base64 import b64decode
from pathlib import Path
from typing import Literal

from pipeline.core.artifact import Card, Contents, write_json, write_metrics, write_refusals
from pipeline.core.config import Config
from pipeline.core.errors import InputError, Refused
from pipeline.core.log import Log

DOT = b64decode("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR42mNgAAAAAgAB9HFkpgAAAABJRU5ErkJggg==")


class PrepareConfig(Config):
    images: int


class DistillConfig(Config):
    steps: int
    lr: float
    end: Literal["well", "input", "fault", "full", "slowly", "never", "fault beside small", "refused"]


class EvaluateConfig(Config):
    prompt: str


class CompareConfig(Config):
    title: str


def prepare(config: PrepareConfig, *, out: Path, log: Log) -> Contents:
    (out / "data.txt").write_text("x" * config.images)
    write_metrics(out, {"images": config.images})
    return Contents(kind="dataset")


def distill(config: DistillConfig, *, prepare: Path, student: str, out: Path, log: Log) -> Contents:
    for step in range(config.steps):
        log({"loss": 1 / (step + 1)}, step=step)
    (out / "model.txt").write_text(f"{student} {config.lr} {(prepare / 'data.txt').read_text()}")
    while config.end == "fault beside small" and not Path("started small").exists():
        time.sleep(0.1)
    if config.end == "input":
        raise InputError(f"{prepare / 'data.txt'} is too short: make it longer.")
    if config.end == "refused":
        raise Refused("distill.min_agreement", f"{student} agrees with its teacher to 0.5 only.", value=0.5, limit=0.9)
    if config.end.startswith("fault"):
        raise RuntimeError("the weights went to infinity")
    if config.end == "full":
        raise OSError(errno.ENOSPC, "No space left on device", str(out / "model.txt"))
    if config.end == "slowly":
        Path(f"started {student}").touch()
        time.sleep(8)
    if config.end == "never":
        Path("started").touch()
        Path(f"started {student}").touch()
        time.sleep(120)
    write_metrics(out, {"loss": 1 / config.steps})
    return Contents(kind="engine", model=student, precision="fp32", load={"engine": "openvino"})


def evaluate_teacher(config: EvaluateConfig, *, prepare: Path, out: Path, log: Log) -> Contents:
    write_metrics(out, {"box_miou": 0.9, "click_miou": 0.8, "latency_ms": 40.0})
    return Contents(kind="evaluation", model="bundled")


def evaluate(config: EvaluateConfig, *, distill: Path, student: str, precision: str, out: Path, log: Log) -> Contents:
    log({"box_miou": 0.85})
    ious = [{"box_iou": 0.8 + 0.01 * (i % 11), "click_iou": 0.7 + 0.01 * (i % 11)} for i in range(33)]
    rows = [{"image_id": i % 12, "annotation_id": i, "area": 2000.0 + i} | own for i, own in enumerate(ious)]
    write_json(out / "instances.json", rows)
    write_json(out / "datasets.json", {"": {"name": "validation", "digest": "0" * 64, "protocol": "published"}})
    write_metrics(out, {"box_miou": 0.85, "click_miou": 0.75, "latency_ms": 10.0})
    return Contents(kind="evaluation", model=student, precision=precision)


def compare(config: CompareConfig, *, evaluate_teacher: Path, evaluate: Path, out: Path, log: Log) -> Contents:
    shared = {"runtime": "openvino", "size_mib": 1.0, "memory_mib": None}
    shared |= {"trivial_box_miou": 0.6, "trivial_click_miou": 0.4}
    teacher = {"model": "bundled", "precision": "fp32", "role": "teacher", "artifact": None}
    rows = [teacher | {"box_miou": 0.9, "click_miou": 0.8, "latency_ms": 40.0}]
    cards = [Card.read(path.parent) for path in sorted(evaluate.rglob("card.json"))]
    for card in cards:
        engine = Path("artifacts/distill", str(card.model))
        row = {"model": card.model, "precision": card.precision, "role": "student", "artifact": str(engine)}
        if card.refusal is None:
            row |= {"box_miou": 0.85, "click_miou": 0.75, "latency_ms": 10.0, "digest": Card.read(engine).digest}
            rows.append(row)
    write_refusals(out, {(card.model, card.precision): card.refusal for card in cards if card.refusal})
    write_json(out / "leaderboard.json", [row | shared for row in rows])
    write_json(out / "plots.json", [{"latency_ms": row["latency_ms"], "box_miou": row["box_miou"]} for row in rows])
    (out / "plots").mkdir()
    (out / "plots" / "dot.png").write_bytes(DOT)
    write_metrics(out, {"students": len(cards)})
    (out / "report.html").write_text(f"<h1>{config.title}</h1>")
    return Contents(kind="comparison")
