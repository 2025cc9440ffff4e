"""The section ``build_engine`` of params.yaml."""

from typing import Literal

from pydantic import Field

from pipeline.config import Config


class BuildEngineConfig(Config):
    """Which engine, and what it must show before it is kept."""

    engine: str
    """A key of `ENGINES`."""
    inference_precision: Literal["f32", "bf16"]
    """Arithmetic of what is not int8; bf16 halves the time of fp32 models on CPUs that have it."""
    threads: int = Field(ge=1)
    """CPU threads of the check; how many serve later is the caller's choice."""
    images: int = Field(ge=1)
    """Calibration images on which the engine is compared with the student in PyTorch."""
    min_cosine: float = Field(ge=-1, le=1)
    """Smallest cosine between the engine's embedding and the student's that passes, on every image."""
    min_mask_agreement: float = Field(ge=0, le=1)
    """Smallest mean IoU between the engine's masks and the student's that passes."""
