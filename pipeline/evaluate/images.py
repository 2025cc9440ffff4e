"""Run an evaluator over many images: prefetch in threads, split among processes, resume after interruption."""

import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
from jaxtyping import UInt8

from pipeline.core.distributed import Ranks
from pipeline.core.errors import InputError
from pipeline.core.progress import progress
from pipeline.core.untrusted import image_file, json_file
from pipeline.core.untrusted.regular_file import read_bytes
from pipeline.ops.geometry import Size
from pipeline.runtime import Predictor

_READ_AHEAD = 4
"""Images prefetched."""
_LARGEST = 4 << 30
"""Bytes of one process's finished results."""

Result = dict[str, Any]
"""An evaluator's JSON result for one image; independent of other images."""


@runtime_checkable
class Listed(Protocol):
    """An image with an id."""

    @property
    def id(self) -> int:
        """Unique in its annotation file."""


ImageT = TypeVar("ImageT", bound=Listed)


class Done:
    """Results of finished images on disk, from which an interrupted evaluation resumes.

    Each process writes its own file, one line per image; truncated lines are ignored.

    Args:
        directory: Persists between runs. None stores nothing on disk.
        rank: Rank of this process; names its file.
    """

    def __init__(self, directory: Path | None, rank: int = 0) -> None:
        self.results = dict[str, Result]()
        self._path = directory / f"{rank}.jsonl" if directory else None
        if directory is None:
            return
        directory.mkdir(parents=True, exist_ok=True)
        for path in sorted(directory.glob("*.jsonl")):
            for line in read_bytes(path, _LARGEST, remedy="Delete it.").splitlines():
                try:
                    entry = json_file.parse(line, str(path))
                    self.results[entry["key"]] = entry["result"]
                except (InputError, LookupError, TypeError):
                    continue

    def add(self, key: str, result: Result) -> None:
        """Store the result of one image."""
        self.results[key] = result
        if self._path is not None:
            with self._path.open("a") as stream:  # the leading newline ends a truncated line
                stream.write(f"\n{json.dumps({'key': key, 'result': result}, allow_nan=False)}\n")


@dataclass(frozen=True)
class Run:
    """Resources shared by all evaluators of one model."""

    predictor: Predictor
    pool: ThreadPoolExecutor
    """For work outside the model: reading, distance transforms, run-length encoding. numpy, cv2 and PIL release the
    GIL."""
    prompts_batch: int
    ranks: Ranks
    done: Done

    def each_image(
        self,
        name: str,
        images: Sequence[ImageT],
        read: Callable[[ImageT], UInt8[np.ndarray, "h w 3"]],
        work: Callable[[ImageT], Result],
    ) -> list[Result]:
        """Encode this process's unfinished images and call ``work`` on each.

        Args:
            name: Name of the evaluator, for the progress bar and the keys of its results.
            images: Images, in the order of the results.
            read: Returns the pixels of an image; called in threads.
            work: Called while the image is set in the predictor.

        Returns:
            One result per image on the first process; on the others the results of their own images.
        """
        key = {image.id: f"{name}/{image.id}" for image in images}
        own = self.ranks.share(images)
        todo = [image for image in own if key[image.id] not in self.done.results]
        pixels = _ahead(self.pool, read, todo)
        bar = progress(zip(todo, pixels, strict=True), name, "image", total=len(own), done=len(own) - len(todo))
        for image, array in bar:
            self.predictor.set_image(array)
            self.done.add(key[image.id], work(image))
        self.predictor.reset_image()
        own_results = {key[image.id]: self.done.results[key[image.id]] for image in own}
        results = self.ranks.gather(own_results)
        return [results[key[image.id]] for image in images if key[image.id] in results]


def _ahead(pool: ThreadPoolExecutor, read: Callable[[ImageT], Any], images: Sequence[ImageT]) -> Iterator[Any]:
    waiting: deque[Future[Any]] = deque(pool.submit(read, image) for image in images[:_READ_AHEAD])
    remaining = iter(images[_READ_AHEAD:])
    while waiting:
        array = waiting.popleft().result()
        waiting.extend(pool.submit(read, image) for image in islice(remaining, 1))
        yield array


def read_rgb(path: Path, size: Size, remedy: str) -> UInt8[np.ndarray, "h w 3"]:
    """Read the RGB pixels of an image.

    Raises:
        InputError: The file is missing or damaged, or its size differs from ``size``, its masks' (H, W).
    """
    with image_file.opened(image_file.read(path, remedy=remedy), str(path), remedy=remedy) as image:
        pixels = np.asarray(image.convert("RGB"))
    if pixels.shape[:2] != size:
        raise InputError(f"{path} is {pixels.shape[:2]} pixels (H, W), but its masks are {size}. {remedy}")
    return pixels
