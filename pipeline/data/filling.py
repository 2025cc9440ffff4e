"""Computing of embeddings into their store: by ``embed``, and by readers for missing files."""

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from pydantic import JsonValue
from torch import Tensor

from pipeline.core.artifact import Card
from pipeline.core.errors import InputError
from pipeline.core.loading import NumWorkers, Request, load, loading_of
from pipeline.core.log import Log, silent
from pipeline.core.progress import counter, notice
from pipeline.data.embeddings import Embeddings, StoredShard
from pipeline.data.encoding import TENSOR, DrawPixels, encode, identity
from pipeline.data.shards import Shards
from pipeline.data.store import Rows, Seal, StoreFile, locate, moments
from pipeline.models.sam import Sam
from pipeline.models.students import load_checkpoint, module_of
from pipeline.ops.precision import precision_of

DTYPE = "float16"


def origin(sam: Sam, card: Card, feature_layers: Sequence[int], precision: str) -> dict[str, JsonValue]:
    """Everything except the images that decides a teacher's embeddings, and thereby their file names in the store.

    Args:
        sam: The teacher.
        card: Card of its checkpoint.
        feature_layers: Blocks whose features are stored too.
        precision: Of the forward pass: fp32, fp16 or bf16.
    """
    settings: dict[str, JsonValue] = {
        "model": card.model,
        "options": card.options,
        "dtype": DTYPE,
        "precision": precision,
        "feature_layers": [*feature_layers],
    }
    return {**settings, **identity(sam, module_of(card.model or ""))}


@dataclass(frozen=True)
class Job:
    """A file of the store to write."""

    target: StoreFile
    indices: range
    """Of its images in their split."""


@dataclass(frozen=True, kw_only=True)
class Encoding:
    """How images are encoded."""

    sam: Sam
    """The teacher, on its device."""
    batch: int
    """Images encoded at once."""
    feature_layers: Sequence[int]
    """Blocks whose features are stored too."""
    precision: str
    """Of the forward pass: fp32, fp16 or bf16."""
    num_workers: NumWorkers = "auto"
    """Processes that read images; see `pipeline.core.loading`."""


def fill(
    jobs: Sequence[Job], shards: Shards, encoding: Encoding, advance: Callable[[int], object], log: Log
) -> dict[str, Seal]:
    """Compute embeddings and features of shards and write them to the store.

    While the device encodes a batch, images of the next ones are read, the one before is written, and the file before
    is hashed. A file that another process completed meanwhile is taken as it is.

    Args:
        jobs: The files to write, of one split.
        shards: The split.
        encoding: How its images are encoded.
        advance: Called with the number of images encoded.
        log: Receives images per second.

    Returns:
        The files' seals, by name.

    Raises:
        InputError: The store cannot be written, an image is damaged, or an embedding is not finite.
    """
    device = next(encoding.sam.parameters()).device
    requests = [
        Request([*job.indices[start : start + encoding.batch]], number, [])
        for number, job in enumerate(jobs)
        for start in range(0, len(job.indices), encoding.batch)
    ]
    draw = DrawPixels(shards, encoding.sam.input_size)
    complete, sealing = dict[str, Seal](), dict[str, Future[Seal]]()
    with (
        ThreadPoolExecutor(1, "seal") as pool,
        closing(load(draw, requests, loading_of(draw, encoding.num_workers, device))) as drawn,
    ):
        for job in jobs:
            own = islice(drawn, -(-len(job.indices) // encoding.batch))
            started = time.perf_counter()
            with ExitStack() as stack:
                stack.enter_context(job.target.lock())
                seal = job.target.seal()
                if seal is not None:  # another process was first
                    deque(own, maxlen=0)
                    advance(len(job.indices))
                    complete[job.target.file] = seal
                    continue
                rows = stack.enter_context(job.target.rows(len(job.indices)))
                _write(rows, own, job, shards, encoding, advance)
                sealing[job.target.file] = pool.submit(_sealed, stack.pop_all(), rows)
            rate = len(job.indices) / (time.perf_counter() - started)
            log({"images_per_s": rate}, step=job.indices.stop)
        return complete | {file: sealed.result() for file, sealed in sealing.items()}


def _write(
    rows: Rows,
    batches: Iterable[tuple[Tensor, Tensor]],
    job: Job,
    shards: Shards,
    encoding: Encoding,
    advance: Callable[[int], object],
) -> None:
    """Encode a file's batches, each while the one before is written."""
    before: _Encoded | None = None
    done = 0
    for pixels, sizes in batches:
        encoded = _Encoded(encode(encoding.sam, pixels, sizes, encoding.feature_layers, encoding.precision))
        if before is not None:
            done = before.write(rows, shards.keys[job.indices[done]], done, encoding.precision, advance)
        before = encoded
    if before is not None:
        before.write(rows, shards.keys[job.indices[done]], done, encoding.precision, advance)


class _Encoded:
    """A batch's outputs on their way from the device: copied to pinned memory after what the device has to do."""

    def __init__(self, outputs: Mapping[str, Tensor]) -> None:
        finite = torch.stack([torch.isfinite(output).all() for output in outputs.values()]).all()
        mean, mean_square = moments(outputs[TENSOR])
        self._outputs = {name: output.to("cpu", non_blocking=True) for name, output in outputs.items()}
        self._finite, self._mean, self._mean_square = (
            value.to("cpu", non_blocking=True) for value in (finite, mean, mean_square)
        )
        self._copied = torch.cuda.Event() if finite.is_cuda else None
        if self._copied:
            self._copied.record()

    def write(self, rows: Rows, first: str, done: int, precision: str, advance: Callable[[int], object]) -> int:
        """Wait for the copy, and write it; returns the images written so far."""
        if self._copied:
            self._copied.synchronize()
        count = len(self._mean)
        if not self._finite:
            cause = (
                "its checkpoint is damaged; run `dvc repro --force --single-item teacher`"
                if precision == "fp32"
                else f"set embed.autocast, which is {precision}, to none"
            )
            raise InputError(
                f"the teacher's embeddings of {count} images from {first!r} on are not finite in half precision: "
                f"{cause}."
            )
        rows.append(self._outputs, self._mean, self._mean_square)
        advance(count)
        return done + count


def _sealed(stack: ExitStack, rows: Rows) -> Seal:
    """Complete a file and release its lock."""
    stack.close()
    return rows.seal


def refill(embeddings: Embeddings, *, prepare: Path, teacher: Path, batch: int, device: torch.device) -> None:
    """Recompute files missing from the store, which DVC does not track and a new clone or machine lacks.

    Values equal those computed by ``embed`` up to the device's rounding.

    Args:
        embeddings: The embeddings to complete.
        prepare: Their dataset.
        teacher: Their teacher's checkpoint.
        batch: Images encoded at once.
        device: Device of the teacher.

    Raises:
        InputError: The store cannot be written, or an input is damaged or has changed.
    """
    missing = embeddings.missing()
    if not missing:
        return
    notice(
        f"{len(missing)} of {len(embeddings.shards)} files of the teacher's embeddings are not in {embeddings.store}: "
        "recomputing them. Set SAM_DISTILLERY_STORE to share a store between checkouts."
    )
    sam = load_checkpoint(teacher).to(device).eval()
    settings = origin(sam, Card.read(teacher), embeddings.feature_layers, embeddings.precision)
    encoding = Encoding(
        sam=sam,
        batch=batch,
        feature_layers=embeddings.feature_layers,
        precision=precision_of(device, embeddings.precision),
    )
    with counter("embed", "image", sum(len(shard.keys) for shard in missing)) as bar:
        for split in sorted({shard.split for shard in missing}):
            shards = Shards(prepare, split)
            jobs = [_job(embeddings, stored, shards, settings) for stored in missing if stored.split == split]
            fill(jobs, shards, encoding, bar.update, silent)


def _job(embeddings: Embeddings, stored: StoredShard, shards: Shards, settings: Mapping[str, JsonValue]) -> Job:
    """The job of a missing file.

    Raises:
        InputError: Its data, teacher or code has changed, on which its name depends.
    """
    begin = 0
    for shard in shards.shards:
        current = locate(embeddings.store, Path(stored.file).stem, {**settings, "shard": shard.sha256})
        if current.file == stored.file:
            return Job(current, range(begin, begin + len(shard.samples)))
        begin += len(shard.samples)
    raise InputError(
        f"{stored.file} is missing and cannot be recomputed: {shards.directory}, the teacher or the code has changed "
        "since. Run `dvc repro embed`."
    )
