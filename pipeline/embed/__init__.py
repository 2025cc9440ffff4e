"""The teacher's image embeddings, computed once per image and kept in a store.

Distillation reads each image many times and the teacher is the slow part, so what it says of an image is written down
in half precision: 256 x 64 x 64 values, 2 MiB, at SAM's size, and where a student learns from layers, the features of
tapped blocks too (10 MiB for each of ViT-H's). Only train and calibration need it.
"""

import hashlib
import math
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Annotated

import torch
from jaxtyping import Float, Float16
from pydantic import Field
from torch import Tensor

from pipeline import geometry, models
from pipeline.artifact import Card, Contents, file_sha256, write_json, write_metrics
from pipeline.config import Config
from pipeline.data.embeddings import TAP, TENSOR, EmbeddingsManifest, StoredShard
from pipeline.data.shards import MANIFEST, Shard, Shards
from pipeline.embed.store import Place, Seal, place
from pipeline.errors import InputError
from pipeline.log import Log
from pipeline.models.sam import Sam
from pipeline.models.students import load_checkpoint
from pipeline.models.taps import tapped
from pipeline.progress import counter

SPLITS = ("train", "calibration")
DTYPE = "float16"
READERS = 4


class EmbedConfig(Config):
    """Where embeddings go and how they are computed."""

    store: str
    """A directory outside DVC, relative to where the pipeline runs; may be shared between checkouts."""
    batch: Annotated[int, Field(ge=1)]
    device: str
    """As torch names it: ``cpu``, ``cuda``."""
    taps: list[Annotated[int, Field(ge=0)]]
    """The teacher's blocks whose features are kept too, for ``layer_wise`` distillation; ``[]`` for none."""


def embed(config: EmbedConfig, *, prepare: Path, teacher: Path, out: Path, log: Log) -> Contents:
    """Fill the store with the embeddings of train and calibration images, and list them.

    Shards that are in the store and intact are kept, so an interrupted run goes on where it stopped.

    Args:
        config: Section ``embed`` of params.yaml.
        prepare: The dataset.
        teacher: The checkpoint that embeds.
        out: Empty directory for the artifact.
        log: Gets images per second while it works, and the counts at the end.

    Raises:
        InputError: The store cannot be written, an input is damaged, or the teacher gives no finite numbers.
    """
    card = Card.read(teacher)
    sam = load_checkpoint(teacher).to(_device(config.device)).eval()
    code, taps = _code(), sorted(set(config.taps))
    listed, seals = [], []
    for split in SPLITS:
        shards = Shards(prepare, split)
        bar = counter(f"embed {split}", "image", len(shards))
        begin = 0
        for number, shard in enumerate(shards.shards):
            origin = {"teacher": card.digest, "shard": shard.sha256, "dtype": DTYPE, "taps": taps, "code": code}
            where = place(Path(config.store), f"{split}-{number:05d}", origin)
            indices = range(begin, begin + len(shard.samples))
            seal = where.seal() or _fill(where, sam, shards, indices, config.batch, taps, bar.update, log)
            bar.update(indices.stop - bar.n)
            listed.append(_describe(where, seal, shard, split))
            seals.append(seal)
            begin = indices.stop
        bar.close()
    manifest = EmbeddingsManifest(
        store=config.store, teacher=card.digest, dtype=DTYPE, embedding_size=sam.embedding_size, taps=taps,
        shards=listed,
    )  # fmt: skip
    write_json(out / MANIFEST, manifest.model_dump())
    metrics = _metrics(seals)
    write_metrics(out, metrics)
    log(metrics)
    return Contents(kind="embeddings", model=card.model)


def _code() -> str:
    """Hash of the sources that decide an embedding: a mended encoder must not find what the faulty one stored."""
    sources = [Path(geometry.__file__), *sorted(Path(models.__file__).parent.glob("*.py"))]
    return hashlib.sha256("".join(map(file_sha256, sources)).encode()).hexdigest()


def _fill(
    where: Place,
    sam: Sam,
    shards: Shards,
    indices: range,
    batch: int,
    taps: Sequence[int],
    advance: Callable[[int], object],
    log: Log,
) -> Seal:
    """Compute one shard's embeddings and features, and put them in the store."""
    found = dict[str, Tensor]()
    started, done = time.perf_counter(), 0
    for images in _batches(shards, indices, batch, sam.input_size):
        parts = _encode(sam, images, taps)
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


@torch.inference_mode()
def _encode(sam: Sam, images: Float[Tensor, "b 3 s s"], taps: Sequence[int]) -> dict[str, Float16[Tensor, "b _ g g"]]:
    """Embeddings and tapped features, by the name they have in the store."""
    device = next(sam.parameters()).device
    if not taps:
        return {TENSOR: sam.image_encoder(images.to(device)).to("cpu", torch.float16)}
    with tapped(sam.image_encoder, taps) as features:
        found = {TENSOR: sam.image_encoder(images.to(device))}
    found |= {TAP.format(tap): features[tap] for tap in taps}
    return {name: value.to("cpu", torch.float16).contiguous() for name, value in found.items()}


def _batches(shards: Shards, indices: range, batch: int, side: int) -> Iterator[Float[Tensor, "b 3 s s"]]:
    """Images as the encoder reads them; the next batch is decoded while one is being worked on."""

    def read(index: int) -> Tensor:
        return geometry.to_input(shards[index].image, side)

    starts = indices[::batch]
    with ThreadPoolExecutor(READERS) as pool:
        ahead = [pool.submit(read, i) for i in indices[:batch]]
        for start in starts:
            current, begin = ahead, start - indices.start + batch
            ahead = [pool.submit(read, i) for i in indices[begin : begin + batch]]
            yield torch.stack([future.result() for future in current])


def _device(name: str) -> torch.device:
    """The device of that name.

    Raises:
        InputError: There is none.
    """
    try:
        device = torch.empty(0, device=name).device
        if device.type == "meta":
            raise RuntimeError("it holds no numbers")
        return device
    except (RuntimeError, AssertionError, ImportError) as error:
        reason = str(error).splitlines()[0]
        raise InputError(f"embed.device is {name!r}, which is not to be had here ({reason}): set it to cpu.") from None


def _describe(where: Place, seal: Seal, shard: Shard, split: str) -> StoredShard:
    keys = [entry.key for entry in shard.samples]
    return StoredShard(file=where.file, bytes=seal.bytes, sha256=seal.sha256, split=split, keys=keys)


def _metrics(seals: list[Seal]) -> dict[str, float]:
    """Counts, and mean and standard deviation over all values of all embeddings."""
    images = sum(seal.images for seal in seals)
    mean = sum(seal.mean * seal.images for seal in seals) / images
    square = sum(seal.mean_square * seal.images for seal in seals) / images
    return {
        "images": float(images),
        "bytes": float(sum(seal.bytes for seal in seals)),
        "embedding_mean": mean,
        "embedding_std": math.sqrt(max(0.0, square - mean**2)),
    }
