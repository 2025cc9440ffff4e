"""The section ``align.<student>`` of params.yaml."""

from typing import Annotated

from pydantic import Field

from pipeline.config import Config
from pipeline.training import OptimizerConfig


class AlignConfig(Config):
    """How one student's mask decoder is aligned."""

    batch: Annotated[int, Field(ge=1)]
    """Images in a step, over all processes."""
    prompts: Annotated[int, Field(ge=1)]
    """Prompts on each image, half of them boxes, half of them clicks."""
    keep_embeddings: bool
    """Encode each image once and keep what comes out in memory: 2 MiB an image at SAM's size, 128 KiB for nano."""
    device: str
    optimizer: OptimizerConfig
