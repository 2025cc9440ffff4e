"""The precision the student was trained in: the exported files as they are."""

from pathlib import Path

from pipeline.data.shards import Shards
from pipeline.quantize.config import QuantizeConfig


def fp32(config: QuantizeConfig, encoder: Path, images: Shards, input_size: int) -> dict[str, float]:
    """Leave ``encoder`` as it is; no image is read."""
    return {}
