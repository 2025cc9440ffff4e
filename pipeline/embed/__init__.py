"""Compute the teacher's image embeddings once per image and cache them in a store.

The teacher is slow and distillation reads each image many times. Embeddings are stored in fp16: 256 x 64 x 64 values,
2 MiB, at SAM's size. Layer-wise distillation also needs block features (10 MiB per block of ViT-H). Only the train and
calibration splits are embedded.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, JsonValue

from pipeline.core.artifact import Card, Contents, write_json, write_metrics
from pipeline.core.checkout import store_path
from pipeline.core.config import Config
from pipeline.core.device import device_of
from pipeline.core.distributed import joined
from pipeline.core.log import Log
from pipeline.core.progress import counter
from pipeline.data.embeddings import EmbeddingsManifest, StoredShard
from pipeline.data.filling import DTYPE, Encoding, Job, fill, origin
from pipeline.data.shards import MANIFEST, Shard, Shards
from pipeline.data.store import Seal, StoreFile, locate
from pipeline.models.students import load_checkpoint
from pipeline.ops.precision import precision_of

SPLITS = ("train", "calibration")


class EmbedConfig(Config):
    """How embeddings are computed and where they are stored."""

    store: str = ".store/embeddings"
    """Directory outside DVC, relative to ``SAM_DISTILLERY_STORE`` or the checkout; checkouts can share it."""
    batch: Annotated[int, Field(ge=1)] = 8
    device: str = "auto"
    """Torch device: ``cpu``, ``cuda``; ``auto`` is a GPU if there is one."""
    autocast: Literal["none", "bf16", "fp16"] = "fp16"
    """Forward passes in mixed precision, where the device has instructions for it; embeddings are stored in fp16."""
    num_workers: Annotated[int, Field(ge=0, le=128)] | Literal["auto"] = "auto"
    """Processes that read images; see ``optimizer.num_workers``."""
    feature_layers: list[Annotated[int, Field(ge=0)]] = []
    """Indices of teacher blocks whose features are also stored, for ``layer_wise`` distillation."""


def embed(config: EmbedConfig | None, *, prepare: Path, teacher: Path, out: Path, log: Log) -> Contents:
    """Store the embeddings of train and calibration images, and write their manifest.

    Intact shards in the store are reused, so an interrupted run resumes.

    Args:
        config: Section ``embed`` of params.yaml; null computes nothing, for runs without distillation.
        prepare: The dataset.
        teacher: The teacher's checkpoint.
        out: Empty directory for the artifact.
        log: Receives images per second, and counts at the end.

    Raises:
        InputError: The store cannot be written, an input is damaged, or an embedding is not finite.
    """
    card = Card.read(teacher)
    if config is None:
        _write_manifest(out, EmbedConfig(), card, "fp32", 0, [], [])
        write_metrics(out, {"images": 0.0})
        return Contents(kind="embeddings", model=card.model)
    device = device_of(config.device, "embed.device")
    sam = load_checkpoint(teacher).to(device).eval()
    feature_layers = sorted(set(config.feature_layers))
    precision = precision_of(device, config.autocast)
    identity = origin(sam, card, feature_layers, precision)
    encoding = Encoding(
        sam=sam,
        batch=config.batch,
        feature_layers=feature_layers,
        precision=precision,
        num_workers=config.num_workers,
    )
    stored_shards, seals = [], []
    with joined(device) as ranks:
        for split in SPLITS:
            shards = Shards(prepare, split)
            jobs = _jobs(store_path(config.store), shards, identity)
            with counter(f"embed {split}", "image", len(shards)) as bar:
                own = _fill(ranks.share(jobs), shards, encoding, bar.update, log)
            sealed = ranks.gather(own)
            if ranks.first:
                stored_shards += [
                    _describe(job.target, sealed[job.target.file], shard, split)
                    for job, shard in zip(jobs, shards.shards, strict=True)
                ]
                seals += [sealed[job.target.file] for job in jobs]
    contents = Contents(kind="embeddings", model=card.model)
    if not ranks.first:
        return contents
    _write_manifest(out, config, card, precision, sam.embedding_size, feature_layers, stored_shards)
    metrics = _metrics(seals)
    write_metrics(out, metrics)
    log(metrics)
    return contents


def _jobs(store: Path, shards: Shards, identity: Mapping[str, JsonValue]) -> list[Job]:
    """The files of a split, in order."""
    jobs, begin = [], 0
    for number, shard in enumerate(shards.shards):
        target = locate(store, f"{shards.split}-{number:05d}", {**identity, "shard": shard.sha256})
        jobs.append(Job(target, range(begin, begin + len(shard.samples))))
        begin += len(shard.samples)
    return jobs


def _fill(
    jobs: Sequence[Job], shards: Shards, encoding: Encoding, advance: Callable[[int], object], log: Log
) -> dict[str, Seal]:
    """Compute the files that are missing or damaged; returns the seals of all, by name."""
    seals, missing = dict[str, Seal](), []
    for job in jobs:
        seal = job.target.seal()
        if seal is None:
            missing.append(job)
        else:
            seals[job.target.file] = seal
            advance(len(job.indices))
    return seals | (fill(missing, shards, encoding, advance, log) if missing else {})


def _write_manifest(
    out: Path, config: EmbedConfig, teacher: Card, precision: str, embedding_size: int, feature_layers: list[int],
    shards: list[StoredShard],
) -> None:  # fmt: skip
    manifest = EmbeddingsManifest(
        store=config.store, teacher=teacher.digest, dtype=DTYPE, precision=precision,
        embedding_size=embedding_size, feature_layers=feature_layers, shards=shards,
    )  # fmt: skip
    write_json(out / MANIFEST, manifest.model_dump())


def _describe(target: StoreFile, seal: Seal, shard: Shard, split: str) -> StoredShard:
    keys = [entry.key for entry in shard.samples]
    return StoredShard(file=target.file, bytes=seal.bytes, sha256=seal.sha256, split=split, keys=keys)


def _metrics(seals: list[Seal]) -> dict[str, float]:
    """Counts, and mean and standard deviation over the values of all embeddings."""
    images = sum(seal.images for seal in seals)
    mean = sum(seal.mean * seal.images for seal in seals) / images
    square = sum(seal.mean_square * seal.images for seal in seals) / images
    return {
        "images": float(images),
        "bytes": float(sum(seal.bytes for seal in seals)),
        "embedding_mean": mean,
        "embedding_std": math.sqrt(max(0.0, square - mean**2)),
    }
