"""One way through many images: read ahead in threads, shared among processes, and what is done is never done again."""

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
from PIL import Image, UnidentifiedImageError

from pipeline.core.distributed import Ranks
from pipeline.core.errors import InputError
from pipeline.core.progress import progress
from pipeline.ops.geometry import Size
from pipeline.runtime import Predictor

_READ_AHEAD = 4
"""Images decoded before they are needed."""

Result = dict[str, Any]
"""What an evaluator says of one image: JSON, and nothing of other images."""


@runtime_checkable
class Listed(Protocol):
    """An image of a json."""

    @property
    def id(self) -> int:
        """Unique in its json."""


ImageT = TypeVar("ImageT", bound=Listed)


class Done:
    """Results of images that are done, on the disk: a killed evaluation goes on from there.

    Every process writes a file of its own, one line per image; a line that a kill cut short does not count.

    Args:
        directory: Kept from run to run. None keeps nothing.
        rank: The process's own file.
    """

    def __init__(self, directory: Path | None, rank: int = 0) -> None:
        self.results = dict[str, Result]()
        self._path = directory / f"{rank}.jsonl" if directory else None
        if directory is None:
            return
        directory.mkdir(parents=True, exist_ok=True)
        for path in sorted(directory.glob("*.jsonl")):
            for line in path.read_text().splitlines():
                try:
                    entry = json.loads(line)
                    self.results[entry["key"]] = entry["result"]
                except (ValueError, LookupError, TypeError):
                    continue

    def add(self, key: str, result: Result) -> None:
        """Remember one image's result."""
        self.results[key] = result
        if self._path is not None:
            with self._path.open("a") as stream:  # the newline in front ends what a kill cut short
                stream.write(f"\n{json.dumps({'key': key, 'result': result}, allow_nan=False)}\n")


@dataclass(frozen=True)
class Run:
    """What all evaluators of one model share."""

    predictor: Predictor
    pool: ThreadPoolExecutor
    """For what is not the model's: reading, distance transforms, run-length codes. numpy, cv2 and PIL let go of the
    interpreter's lock."""
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
        """Encode every image that is this process's and not done, and do ``work`` on it.

        Args:
            name: Of the evaluator; on the progress bar, and what tells its results from others'.
            images: In the order of the result.
            read: Gives the pixels; called in threads.
            work: Called while the image is set in the predictor.

        Returns:
            For the first process one result per image; for the others those of their own images.
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
        known = {key[image.id]: self.done.results[key[image.id]] for image in own}
        found = self.ranks.gather(known)
        return [found[key[image.id]] for image in images if key[image.id] in found]


def _ahead(pool: ThreadPoolExecutor, read: Callable[[ImageT], Any], images: Sequence[ImageT]) -> Iterator[Any]:
    waiting: deque[Future[Any]] = deque(pool.submit(read, image) for image in images[:_READ_AHEAD])
    coming = iter(images[_READ_AHEAD:])
    while waiting:
        array = waiting.popleft().result()
        waiting.extend(pool.submit(read, image) for image in islice(coming, 1))
        yield array


def read_rgb(path: Path, size: Size, remedy: str) -> UInt8[np.ndarray, "h w 3"]:
    """The RGB pixels of an image.

    Raises:
        InputError: The file is missing, damaged or not of ``size``, which its masks have.
    """
    try:
        with Image.open(path) as image:
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, UnidentifiedImageError) as error:
        raise InputError(f"{path} cannot be read ({error}). {remedy}") from None
    if pixels.shape[:2] != size:
        raise InputError(f"{path} is {pixels.shape[:2]} pixels (H, W), its masks are {size}. {remedy}")
    return pixels
