"""Embeddings computed into their store: all of them by ``embed``, and on a miss by what reads them."""

import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from pipeline.data.embeddings import Embeddings, StoredShard
from pipeline.data.encoding import batches, encode
from pipeline.data.shards import Shards
from pipeline.data.store import Place, Seal
from pipeline.errors import InputError
from pipeline.log import Log, silent
from pipeline.models.sam import Sam
from pipeline.models.students import load_checkpoint
from pipeline.progress import counter, notice


def fill(
    where: Place,
    sam: Sam,
    shards: Shards,
    indices: range,
    batch: int,
    taps: Sequence[int],
    advance: Callable[[int], object],
    log: Log,
) -> Seal:
    """Compute one shard's embeddings and features, and put them in the store.

    Args:
        where: Their place.
        sam: The teacher.
        shards: The images.
        indices: Which of them.
        batch: Images that are encoded at once.
        taps: Blocks whose features are kept too.
        advance: Told how many images were encoded.
        log: Gets images per second.

    Raises:
        InputError: The store cannot be written, an image is damaged, or the teacher gives no finite numbers.
    """
    found = dict[str, Tensor]()
    started, done = time.perf_counter(), 0
    for images in batches(shards, indices, batch, sam.input_size):
        parts = encode(sam, images, taps)
        if not all(torch.isfinite(part).all() for part in parts.values()):
            first = shards.keys[indices[done]]
            raise InputError(
                f"the teacher's embeddings of {len(images)} images from {first!r} on are not finite in half precision: "
                "its checkpoint is damaged; run `dvc repro --force --single-item teacher`."
            )
        for name, part in parts.items():
            found.setdefault(name, part.new_empty((len(indices), *part.shape[1:])))[done : done + len(part)] = part
        done += len(images)
        advance(len(images))
    seal = where.write(found)
    log({"images_per_s": done / (time.perf_counter() - started)}, step=indices.stop)
    return seal


def refill(embeddings: Embeddings, *, prepare: Path, teacher: Path, batch: int, device: torch.device) -> None:
    """Compute anew what the store lacks: it is not DVC's, and a clone or another machine begins without it.

    Values are those that ``embed`` computed, to the rounding of the device.

    Args:
        embeddings: Those that are to be there.
        prepare: The dataset they are of.
        teacher: The checkpoint they are by.
        batch: Images that are encoded at once.
        device: Where the teacher runs.

    Raises:
        InputError: The store cannot be written, or an input is damaged or another one.
    """
    missing = embeddings.missing()
    if not missing:
        return
    notice(
        f"{len(missing)} of {len(embeddings.shards)} files of the teacher's embeddings are not in {embeddings.store}: "
        "they are computed anew. SAM_DISTILLERY_STORE names a store that several checkouts share."
    )
    sam: Sam | None = None
    with counter("embed", "image", sum(len(shard.keys) for shard in missing)) as bar:
        for stored in missing:
            where = Place(embeddings.store, stored.file)
            with where.held():
                if where.seal() is None:  # else another process was first
                    sam = sam or load_checkpoint(teacher).to(device).eval()
                    shards = Shards(prepare, stored.split)
                    indices = _places(shards, stored)
                    fill(where, sam, shards, indices, batch, embeddings.taps, bar.update, silent)


def _places(shards: Shards, stored: StoredShard) -> range:
    """Where the samples of a file of embeddings are in their split."""
    keys = shards.keys
    begin = keys.index(stored.keys[0]) if stored.keys[0] in keys else len(keys)
    if keys[begin : begin + len(stored.keys)] != stored.keys:
        raise InputError(f"{stored.file} is of other data than {shards.directory}: run `dvc repro embed`.")
    return range(begin, begin + len(stored.keys))
