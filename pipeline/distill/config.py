"""The section ``distill.<student>`` of params.yaml."""

from typing import Annotated

from pydantic import Field

from pipeline.config import Config
from pipeline.training import OptimizerConfig


class DistillConfig(Config):
    """How one student learns the teacher's embeddings."""

    batch: Annotated[int, Field(ge=1)]
    """Images in a step."""
    device: str
    autocast_bf16: bool
    optimizer: OptimizerConfig
