"""Computing of embeddings into their store: by ``embed``, and by readers for missing files."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import torch
from pydantic import JsonValue
from torch import Tensor

from pipeline.core.artifact import Card
from pipeline.core.errors import InputError
from pipeline.core.log import Log, silent
from pipeline.core.progress import counter, notice
from pipeline.data.embeddings import Embeddings
from pipeline.data.encoding import batches, encode, identity
from pipeline.data.shards import Shards
from pipeline.data.store import Seal, StoreFile, locate
from pipeline.models.sam import Sam
from pipeline.models.students import load_checkpoint, module_of

DTYPE = "float16"


def origin(sam: Sam, card: Card, feature_layers: Sequence[int]) -> dict[str, JsonValue]:
    """Everything except the images that decides a teacher's embeddings, and thereby their file names in the store.

    Args:
        sam: The teacher.
        card: Card of its checkpoint.
        feature_layers: Blocks whose features are stored too.
    """
    settings: dict[str, JsonValue] = {
        "model": card.model,
        "options": card.options,
        "dtype": DTYPE,
        "feature_layers": [*feature_layers],
    }
    return {**settings, **identity(sam, module_of(card.model or ""))}


def fill(
    target: StoreFile,
    sam: Sam,
    shards: Shards,
    indices: range,
    batch: int,
    feature_layers: Sequence[int],
    advance: Callable[[int], object],
    log: Log,
) -> Seal:
    """Compute one shard's embeddings and features and write them to the store.

    Args:
        target: File to write.
        sam: The teacher.
        shards: The images.
        indices: Indices of this shard's images.
        batch: Images encoded at once.
        feature_layers: Blocks whose features are stored too.
        advance: Called with the number of images encoded.
        log: Receives images per second.

    Raises:
        InputError: The store cannot be written, an image is damaged, or an embedding is not finite.
    """

    def encoded() -> Iterator[Mapping[str, Tensor]]:
        done = 0
        for images in batches(shards, indices, batch, sam.input_size):
            parts = encode(sam, images, feature_layers)
            if not all(torch.isfinite(part).all() for part in parts.values()):
                first = shards.keys[indices[done]]
                raise InputError(
                    f"the teacher's embeddings of {len(images)} images from {first!r} on are not finite in half "
                    "precision: its checkpoint is damaged; run `dvc repro --force --single-item teacher`."
                )
            yield parts
            done += len(images)
            advance(len(images))

    started = time.perf_counter()
    seal = target.write(len(indices), encoded())
    log({"images_per_s": len(indices) / (time.perf_counter() - started)}, step=indices.stop)
    return seal


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
    settings = origin(sam, Card.read(teacher), embeddings.feature_layers)
    splits = {split: Shards(prepare, split) for split in {shard.split for shard in missing}}
    positions = {split: {key: i for i, key in enumerate(shards.keys)} for split, shards in splits.items()}
    with counter("embed", "image", sum(len(shard.keys) for shard in missing)) as bar:
        for stored in missing:
            target, shards = StoreFile(embeddings.store, stored.file), splits[stored.split]
            begin = positions[stored.split].get(stored.keys[0], len(shards))
            indices = range(begin, begin + len(stored.keys))
            source = next((shard for shard in shards.shards if shard.samples[0].key == stored.keys[0]), None)
            current = source and locate(embeddings.store, Path(stored.file).stem, settings | {"shard": source.sha256})
            # The name depends on the data, the teacher and the code.
            if current is None or current.file != stored.file:
                raise InputError(
                    f"{stored.file} is missing and cannot be recomputed: {prepare}, the teacher or the code has "
                    "changed since. Run `dvc repro embed`."
                )
            with target.lock():
                if target.seal() is None:  # otherwise another process was first
                    fill(target, sam, shards, indices, batch, embeddings.feature_layers, bar.update, silent)
