"""FIFOs, sockets, devices, directories and links in the place of each kind of file."""

import os
import socket
from pathlib import Path

from numpy.random import Generator

from pipeline.core.artifact import Card, read_metrics
from pipeline.core.config import read_params
from pipeline.core.untrusted import image_file
from pipeline.data import coco
from pipeline.data.sa1b import members
from pipeline.data.shards import Shards
from pipeline.evaluate.accuracy import read_teacher_masks
from pipeline.evaluate.average_precision import score
from pipeline.evaluate.images import Done
from pipeline.models.pretrained.files import read
from pipeline.predict.finished import DIRECTORY, finished
from pipeline.predict.prompts import read_boxes, read_points
from pipeline.runtime.self_check import _read as read_self_check
from pipeline.runtime.tensorrt import SIDECAR, require_match
from pipeline.training.checkpoint import restore
from tests.fuzz.mutation import Case, pick

_HERE = {"tensorrt": "11.4.0", "gpu": "g", "compute_capability": "9.0"}
_READERS = {
    "annotations.json": lambda path: coco.read(path, 1, crowd=False),
    "truth.json": lambda path: score(gt=path, results=path, iou_type="segm", lvis=False),
    "boxes.json": lambda path: read_boxes(path, None, None),
    "points.json": lambda path: read_points(path, None),
    "image.jpg": image_file.read,
    "a.tar": lambda path: [member.read() for member in members(path.parent)],
    "params.yaml": read_params,
    "weights.pth": lambda path: read(path),
    "weights.safetensors": lambda path: read(path),
    "card.json": lambda path: Card.read(path.parent),
    "manifest.json": lambda path: list(Shards(path.parent, "train")),
    "predictions.json": read_teacher_masks,
    "self_check.safetensors": read_self_check,
    SIDECAR: lambda path: require_match(path.parent, _HERE, "s", "fp16"),
}
_OPTIONAL = {
    "metrics.json": lambda path: read_metrics(path.parent),
    "0.jsonl": lambda path: Done(path.parent),
    "run.pt": lambda path: restore(path, {}),
    f"{DIRECTORY}/results.jsonl": lambda path: finished(path.parents[1], "identity").__enter__(),
}
"""Readers of files that may be missing."""


def not_files(rng: Generator) -> Case:
    """Something else than a file where one is read; none of it may be accepted, waited for or read without end."""
    name = pick(rng, [*_READERS, *_OPTIONAL])
    make = pick(rng, (_fifo, _directory, _loop, _zeros, _socket, _dangling, _link_to_fifo))

    def run(folder: Path) -> None:
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        make(path)
        (_READERS | _OPTIONAL)[name](path)

    return Case(run, invalid=name in _READERS)


def _fifo(path: Path) -> None:
    os.mkfifo(path)


def _directory(path: Path) -> None:
    (path / "more").mkdir(parents=True)


def _loop(path: Path) -> None:
    path.symlink_to(path.name)


def _zeros(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _dangling(path: Path) -> None:
    path.symlink_to("missing")


def _link_to_fifo(path: Path) -> None:
    os.mkfifo(path.with_name("fifo"))
    path.symlink_to("fifo")


def _socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listener:
        descriptor = os.open(path.parent, os.O_RDONLY)
        try:
            listener.bind(f"/proc/self/fd/{descriptor}/{path.name}")  # its path may be too long
        finally:
            os.close(descriptor)
