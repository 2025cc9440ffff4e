"""Images per second that one processor core reads and prepares, by recipe, on synthetic samples of SA-1B's size.

A sample is a textured photograph of 1,500 x 2,250 pixels with 100 masks. Times are processor time, so that a shared
machine distorts them less, of one thread: worker processes multiply the rate. The baseline of each group is the part
that no loader can avoid: decoding of the JPEG at the scale that is needed.
"""

import cProfile
import io
import math
import pstats
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image

from pipeline.align import AlignConfig
from pipeline.align.drawing import Draw as DrawAlign
from pipeline.bench.candidate import Candidate, Subject
from pipeline.bench.engines import refuses
from pipeline.bench.settings import Combination, Settings
from pipeline.bench.training import random_embeddings
from pipeline.core.artifact import write_json
from pipeline.data.embeddings import Embeddings
from pipeline.data.photograph import encode_jpeg
from pipeline.data.shards import MANIFEST, Manifest, Packed, Shards, write_split
from pipeline.distill.config import FullStageRecipe
from pipeline.distill.drawing import DrawImages, DrawPrompted, Inputs
from pipeline.ops import masks
from pipeline.ops.geometry import resized

SIZE, MASKS = (1500, 2250), 100
_IMAGES = 4
_QUALITY = 88
_GRID, _FRAME = 64, 1024

_LOAD, _ELEMENT = ("ImageFile.py", "load"), ("instances.py", "__getitem__")
_STEPS: Mapping[str, tuple[Sequence[tuple[str, str]], Sequence[tuple[str, str]]]] = {
    "read": ([("shards.py", "_bytes"), ("json/__init__.py", "loads"), ("embeddings.py", "get")], []),
    "jpeg": ([_LOAD], []),
    "resize": ([("Image.py", "resize")], [_LOAD]),
    "masks": ([("instances.py", "instances_of"), _ELEMENT], []),
    "prompts": ([("prompts.py", "_drawn")], [_ELEMENT]),
}
"""Functions that make up each step of a draw, by file and name, and those that they call and that do not belong to it.
"""


def processor(function: Callable[[], object]) -> float:
    """Processor seconds of one call."""
    begin = time.process_time()
    function()
    return time.process_time() - begin


def _refuses(runtime: str, precision: str) -> str | None:
    if (runtime, precision) != ("torch", "fp32"):
        return "images are read alike for every runtime and precision; take torch and fp32"
    return refuses(runtime, precision)


def _build(
    settings: Settings, student: str, combinations: Sequence[Combination], directory: Path, stack: ExitStack
) -> list[Candidate]:
    images = samples(directory / "images", _IMAGES)
    embeddings = Embeddings(random_embeddings(directory, images, _GRID))
    rows: list[tuple[int, str, Callable[[int], object]]] = []
    for side in (512, 1024):
        inputs = Inputs(images, embeddings, _FRAME, side, _GRID)
        full_stage = FullStageRecipe(kind="full_stage")
        draws: Mapping[str, Any] = {
            "embedding": DrawImages(inputs),
            "full_stage": DrawPrompted(inputs, full_stage.prompts, full_stage.box_jitter, full_stage.rounds),
            "align": _align(images, side),
        }
        rows.append((side, "jpeg decoding", partial(_decode, images, side)))
        rows += [(side, name, partial(_draw, draw)) for name, draw in draws.items()]
    return [
        Candidate(
            name=f"{name} {side} px",
            runtime="torch",
            precision="fp32",
            call=_Cycle(call),
            clock=processor,
            batch=1,
            parameters=0,
            gmacs=0.0,
            size_mib=None,
            group=str(side),
            figures=partial(_figures, _Cycle(call)),
        )
        for side, name, call in rows
    ]


class _Cycle:
    """Calls a function with 0, 1, 2 and so on."""

    def __init__(self, call: Callable[[int], object]) -> None:
        self._call, self._number = call, count()

    def __call__(self) -> object:
        return self._call(next(self._number))


def _draw(draw: Callable[..., object], number: int) -> object:
    return draw([number % _IMAGES], number, [np.random.default_rng(number)])


def _decode(images: Shards, side: int, number: int) -> object:
    with images._read(number % _IMAGES, annotated=False) as (image, _):
        height, width = resized(SIZE, side)
        image.draft("RGB", (width, height))
        return image.load()


def _align(images: Shards, side: int) -> DrawAlign:
    config = AlignConfig.model_validate(
        {"train": "all", "masks": 64, "optimizer": {"steps": 1, "lr": 1.0, "warmup_steps": 0}}
    )
    return DrawAlign(images, [*range(len(images))], config, None, _FRAME, side, _GRID)


def _figures(call: Callable[[], object], median_ms: float) -> dict[str, float]:
    """Images per second, and the share of each step, from a profile of processor time."""
    profile = cProfile.Profile(time.process_time)
    for _ in range(2 * _IMAGES):
        profile.runcall(call)
    stats = pstats.Stats(profile, stream=io.StringIO()).stats  # type: ignore[attr-defined]  # typeshed lacks it
    total = sum(own for _, _, own, _, _ in stats.values())

    def seconds(functions: Sequence[tuple[str, str]]) -> float:
        return math.fsum(
            cumulated
            for (file, _, function), (_, _, _, cumulated, _) in stats.items()
            if any(function == name and file.endswith(end) for end, name in functions)
        )

    spent = {step: max(0.0, seconds(functions) - seconds(without)) for step, (functions, without) in _STEPS.items()}
    shares = {f"{step}_share": share / total for step, share in spent.items()}
    return {"images_per_s": 1e3 / median_ms} | shares | {"other_share": max(0.0, 1 - sum(shares.values()))}


def samples(directory: Path, images: int) -> Shards:
    """Write a dataset of synthetic samples of SA-1B's size to an absent or empty directory."""
    directory.mkdir(exist_ok=True)
    packed = (_sample(np.random.default_rng(index), index) for index in range(images))
    manifest = Manifest(splits={"train": write_split(directory, "train", packed, images)})
    write_json(directory / MANIFEST, manifest.model_dump())
    return Shards(directory, "train")


def _sample(rng: np.random.Generator, index: int) -> Packed:
    height, width = SIZE
    pixels = np.zeros((height, width, 3), np.float32)
    for cell, strength in ((250, 60.0), (50, 30.0), (10, 14.0), (3, 8.0)):
        coarse = rng.normal(0, strength, (height // cell + 2, width // cell + 2, 3)).astype(np.float32)
        pixels += cv2.resize(coarse, (width, height), interpolation=cv2.INTER_CUBIC)
    jpeg = encode_jpeg(Image.fromarray(np.clip(pixels + 120, 0, 255).astype(np.uint8)), _QUALITY)
    annotations = [{"id": number, "segmentation": masks.encode(_mask(rng))} for number in range(MASKS)]
    image = {"image_id": index, "width": width, "height": height, "file_name": f"sa_{index}.jpg"}
    return Packed(f"sa_{index}", jpeg, {"image": image, "annotations": annotations})


def _mask(rng: np.random.Generator) -> np.ndarray:
    """A shape with an uneven outline; radii are log-uniform from 6 to 600 pixels."""
    height, width = SIZE
    radius = float(np.exp(rng.uniform(np.log(6), np.log(600))))
    angles = np.linspace(0, 2 * np.pi, 120, endpoint=False)
    waves = sum(rng.normal(0, 0.25 / k) * np.cos(k * angles + rng.uniform(0, 2 * np.pi)) for k in range(1, 9))
    radii = radius * np.clip(1 + waves, 0.2, 2.0)
    x = rng.uniform(0, width) + radii * np.cos(angles)
    y = rng.uniform(0, height) + radii * np.sin(angles) * rng.uniform(0.4, 1.0)
    mask = np.zeros(SIZE, np.uint8)
    cv2.fillPoly(mask, [np.stack([x, y], axis=1).round().astype(np.int32)], 1)
    if not mask.any():
        mask[height // 2 : height // 2 + 9, width // 2 : width // 2 + 9] = 1
    return mask.astype(bool)


SUBJECT = Subject(
    says="reading and preparing of one image by each recipe's draws",
    unit="one image, on one core",
    refuses=_refuses,
    build=_build,
    of_students=False,
)
