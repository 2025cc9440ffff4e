"""The section ``distill.<student>`` of params.yaml."""

from typing import Annotated

from pydantic import Field, JsonValue

from pipeline.config import Config
from pipeline.training import OptimizerConfig


class DistillConfig(Config):
    """How one student learns the teacher's embeddings."""

    options: dict[str, JsonValue]
    """What the student's builder takes, see `pipeline.models.build`; ``{}`` where it has no choices."""
    batch: Annotated[int, Field(ge=1)]
    """Images in a step, over all processes."""
    device: str
    optimizer: OptimizerConfig
