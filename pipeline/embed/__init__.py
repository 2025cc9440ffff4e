"""Compute the teacher's image embeddings once per image and cache them in a store.

The teacher is slow and distillation reads each image many times. Embeddings are stored in fp16: 256 x 64 x 64 values,
2 MiB, at SAM's size. Layer-wise distillation also needs block features (10 MiB per block of ViT-H). Only the train and
calibration splits are embedded.
"""

import math
from pathlib import Path
from typing import Annotated

from pydantic import Field

from pipeline.core.artifact import Card, Contents, write_json, write_metrics
from pipeline.core.checkout import store_path
from pipeline.core.config import Config
from pipeline.core.device import device_of
from pipeline.core.log import Log
from pipeline.core.progress import counter
from pipeline.data.embeddings import EmbeddingsManifest, StoredShard
from pipeline.data.filling import DTYPE, fill, origin
from pipeline.data.shards import MANIFEST, Shard, Shards
from pipeline.data.store import Seal, StoreFile, locate
from pipeline.models.students import load_checkpoint

SPLITS = ("train", "calibration")


class EmbedConfig(Config):
    """How embeddings are computed and where they are stored."""

    store: str = ".store/embeddings"
    """Directory outside DVC, relative to ``SAM_DISTILLERY_STORE`` or the checkout; checkouts can share it."""
    batch: Annotated[int, Field(ge=1)] = 8
    device: str = "auto"
    """Torch device: ``cpu``, ``cuda``; ``auto`` is a GPU if there is one."""
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
        _write_manifest(out, EmbedConfig(), card, 0, [], [])
        write_metrics(out, {"images": 0.0})
        return Contents(kind="embeddings", model=card.model)
    sam = load_checkpoint(teacher).to(device_of(config.device, "embed.device")).eval()
    feature_layers = sorted(set(config.feature_layers))
    identity = origin(sam, card, feature_layers)
    stored_shards, seals = [], []
    for split in SPLITS:
        shards = Shards(prepare, split)
        bar = counter(f"embed {split}", "image", len(shards))
        begin = 0
        for number, shard in enumerate(shards.shards):
            target = locate(store_path(config.store), f"{split}-{number:05d}", identity | {"shard": shard.sha256})
            indices = range(begin, begin + len(shard.samples))
            with target.lock():
                seal = target.seal()
                if seal is None:
                    seal = fill(target, sam, shards, indices, config.batch, feature_layers, bar.update, log)
            bar.update(indices.stop - bar.n)
            stored_shards.append(_describe(target, seal, shard, split))
            seals.append(seal)
            begin = indices.stop
        bar.close()
    _write_manifest(out, config, card, sam.embedding_size, feature_layers, stored_shards)
    metrics = _metrics(seals)
    write_metrics(out, metrics)
    log(metrics)
    return Contents(kind="embeddings", model=card.model)


def _write_manifest(
    out: Path, config: EmbedConfig, teacher: Card, embedding_size: int, feature_layers: list[int],
    shards: list[StoredShard],
) -> None:  # fmt: skip
    manifest = EmbeddingsManifest(
        store=config.store, teacher=teacher.digest, dtype=DTYPE, embedding_size=embedding_size,
        feature_layers=feature_layers, shards=shards,
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
