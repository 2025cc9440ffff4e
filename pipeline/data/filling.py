"""Embeddings computed into their store: all of them by ``embed``, and on a miss by what reads them."""

import time
from collections.abc import Callable, Sequence
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
from pipeline.data.store import Place, Seal, place
from pipeline.models.sam import Sam
from pipeline.models.students import load_checkpoint, module_of

DTYPE = "float16"


def origin(sam: Sam, card: Card, feature_layers: Sequence[int]) -> dict[str, JsonValue]:
    """All that decides where a teacher's embeddings lie in a store, but the images.

    Args:
        sam: The teacher.
        card: Its checkpoint's.
        feature_layers: Blocks whose features are kept too.
    """
    decided: dict[str, JsonValue] = {
        "model": card.model,
        "options": card.options,
        "dtype": DTYPE,
        "feature_layers": [*feature_layers],
    }
    return {**decided, **identity(sam, module_of(card.model or ""))}


def fill(
    where: Place,
    sam: Sam,
    shards: Shards,
    indices: range,
    batch: int,
    feature_layers: Sequence[int],
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
        feature_layers: Blocks whose features are kept too.
        advance: Told how many images were encoded.
        log: Gets images per second.

    Raises:
        InputError: The store cannot be written, an image is damaged, or the teacher gives no finite numbers.
    """
    found = dict[str, Tensor]()
    started, done = time.perf_counter(), 0
    for images in batches(shards, indices, batch, sam.input_size):
        parts = encode(sam, images, feature_layers)
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
    sam = load_checkpoint(teacher).to(device).eval()
    decided = origin(sam, Card.read(teacher), embeddings.feature_layers)
    splits = {split: Shards(prepare, split) for split in {shard.split for shard in missing}}
    places = {split: {key: i for i, key in enumerate(shards.keys)} for split, shards in splits.items()}
    with counter("embed", "image", sum(len(shard.keys) for shard in missing)) as bar:
        for stored in missing:
            where, shards = Place(embeddings.store, stored.file), splits[stored.split]
            begin = places[stored.split].get(stored.keys[0], len(shards))
            indices = range(begin, begin + len(stored.keys))
            source = next((shard for shard in shards.shards if shard.samples[0].key == stored.keys[0]), None)
            own = source and place(embeddings.store, Path(stored.file).stem, decided | {"shard": source.sha256})
            # What is computed from other data, by another teacher or by other code has another name.
            if own is None or own.file != stored.file:
                raise InputError(
                    f"{stored.file} is missing, and is of other data than {prepare}, of another teacher, or of another "
                    "version of the code: run `dvc repro embed`."
                )
            with where.held():
                if where.seal() is None:  # else another process was first
                    fill(where, sam, shards, indices, batch, embeddings.feature_layers, bar.update, silent)
