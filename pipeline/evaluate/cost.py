"""What a model costs without being run: parameters, multiply-accumulates, bytes of files."""

from pathlib import Path

import torch

from pipeline.core.artifact import CARD, METRICS, Card
from pipeline.core.errors import InputError
from pipeline.models import build
from pipeline.models.cost import count_parameters, macs
from pipeline.runtime.self_check import SELF_CHECK

_MIB = 1 << 20


def cost(card: Card) -> dict[str, float]:
    """Parameters and multiply-accumulates of an artifact's model."""
    if card.model is None:
        raise InputError("this artifact's card names no model: rebuild it with `dvc repro`.")
    with torch.device("meta"):  # only shapes matter, and a ViT-H would fill 2.4 GB
        sam = build(card.model, card.options)
    cost = macs(sam)
    return {
        "parameters": float(count_parameters(sam)),
        "encoder_macs": float(cost["encoder"]),
        "decoder_macs_per_prompt": float(cost["decoder_per_prompt"]),
    }


def size_mib(source: Path) -> float:
    """Size of the deployed files: the artifact without its metadata."""
    metadata = (CARD, METRICS, SELF_CHECK)
    files = [path for path in source.rglob("*") if path.is_file() and path.name not in metadata]
    return sum(path.stat().st_size for path in files) / _MIB
