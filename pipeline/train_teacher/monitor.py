"""Accuracy of a training's averaged weights, at intervals."""

import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from pipeline.core.log import Log
from pipeline.models import build
from pipeline.models.sam import Sam, load_state
from pipeline.train_teacher.frame import Picture
from pipeline.train_teacher.photographs import SCENE_SIDE
from pipeline.train_teacher.validation import Subject, accuracy, held_out_scenes, trivial

MODEL = "bundled_v2"
SCENES, SCENES_SEED = 50, 90210


class Monitor:
    """Writes losses, and at intervals the accuracy of the last checkpoint's averaged weights, to the run's log.

    Args:
        checkpoint: The run's checkpoint.
        journal: File to append to, in JSON Lines.
        every_s: Seconds between two measurements.
        validation: Photographs that are not trained on.
        log: Receives losses and accuracy too.
    """

    def __init__(
        self, checkpoint: Path, journal: Path, every_s: float, validation: Sequence[Picture], log: Log
    ) -> None:
        self._log = log
        self._checkpoint, self._journal, self._every_s = checkpoint, journal, every_s
        self._measured, self._last = 0.0, time.monotonic()
        self._subjects = {
            "photographs": [subject(picture) for picture in validation],
            "scenes": held_out_scenes(SCENES, SCENES_SEED, SCENE_SIDE),
        }
        for name, subjects in self._subjects.items():
            self._write({"data": name, "trivial": _rounded(trivial(subjects))})

    def __call__(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Log a step's losses; measure if it is time and there is a new checkpoint."""
        self._log(metrics, step)
        self._write({"step": step, **_rounded(metrics)})
        if time.monotonic() - self._last < self._every_s or not self._checkpoint.exists():
            return
        if self._checkpoint.stat().st_mtime != self._measured:
            self._measured = self._checkpoint.stat().st_mtime
            self.measure()
            self._last = time.monotonic()

    def measure(self) -> None:
        """Measure the averaged weights of the last checkpoint."""
        sam, done = averaged(self._checkpoint)
        for name, subjects in self._subjects.items():
            figures = accuracy(sam, subjects)
            self._log({f"{name}/{key}": value for key, value in figures.items()}, done)
            self._write({"step": done, "data": name} | _rounded(figures))

    def _write(self, record: Mapping[str, object]) -> None:
        with self._journal.open("a") as stream:
            stream.write(json.dumps({"time": time.strftime("%H:%M:%S")} | dict(record)) + "\n")


def averaged(checkpoint: Path) -> tuple[Sam, int]:
    """The averaged weights of a checkpoint, and its number of completed steps."""
    state = torch.load(checkpoint, map_location="cpu", weights_only=True)
    prefix = "module."
    weights = {key.removeprefix(prefix): v for key, v in state["average"].items() if key.startswith(prefix)}
    sam = build(MODEL)
    load_state(sam, weights, checkpoint)
    sam.image_encoder.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return sam.eval(), int(state["done"])


def subject(picture: Picture) -> Subject:
    """A photograph with full-size masks."""
    full = []
    for i in picture.instances:
        mask = np.zeros(picture.image.shape[:2], bool)
        mask[i.y : i.y + i.mask.shape[0], i.x : i.x + i.mask.shape[1]] = i.mask.astype(bool)
        full.append(mask)
    return Subject(picture.image, full)


def _rounded(values: Mapping[str, float]) -> dict[str, float]:
    return {name: round(float(value), 5) for name, value in values.items()}
