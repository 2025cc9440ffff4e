"""The section ``build_engine`` of params.yaml."""

from typing import Annotated, Literal

from pydantic import Field, field_validator

from pipeline.core.config import Config

_Three = Annotated[list[int], Field(min_length=3, max_length=3)]


class Profile(Config):
    """Least, most usual and greatest extent of what varies from call to call."""

    batch: _Three = [1, 1, 16]
    """Images."""
    prompts: _Three = [1, 16, 64]
    """Prompts on one image."""
    points: _Three = [1, 2, 12]
    """Points of one prompt, a box's corners included."""

    @property
    def masks(self) -> _Three:
        """Earlier masks on one image: usually none, for which one of zeros stands."""
        return [1, 1, self.prompts[2]]

    @field_validator("batch", "prompts", "points")
    @classmethod
    def _rising(cls, extents: list[int]) -> list[int]:
        if not 1 <= extents[0] <= extents[1] <= extents[2]:
            raise ValueError(f"must be least, usual and greatest, from 1 up, not {extents}")
        return extents


class TensorRtConfig(Config):
    """How TensorRT builds."""

    profile: Profile = Profile()
    optimization_level: int = Field(default=3, ge=0, le=5)
    """TensorRT's own scale; 3 is its default, 5 takes the longest."""
    hardware_compatibility: Literal["none", "same_compute_capability", "ampere_plus"] = "none"
    """Which GPUs beside the building one may load the engine; the wider, the slower."""
    workspace_mib: int | None = Field(default=None, ge=1)
    """Memory a layer may use while it runs; null: all there is."""
    timing_cache: str | None = ".store/timings"
    """Folder that keeps timings by GPU and version, which makes the next build quicker; null: none."""


class BuildEngineConfig(Config):
    """Which engine, and what it must show before it is kept."""

    engine: str = "openvino"
    """A key of `ENGINES`."""
    inference_precision: Literal["f32", "bf16"] = "f32"
    """Arithmetic of what is not int8; bf16 halves the time of fp32 models on CPUs that have it."""
    threads: int = Field(default=2, ge=1)
    """CPU threads of the check; how many serve later is the caller's choice."""
    images: int = Field(default=4, ge=1)
    """Calibration images on which the engine is compared with the student in PyTorch."""
    min_cosine: float = Field(default=0.97, ge=-1, le=1)
    """Smallest cosine between the engine's embedding and the student's that passes, on every image."""
    min_mask_agreement: float = Field(default=0.9, ge=0, le=1)
    """Smallest mean IoU between the engine's masks and the student's that passes."""
    tensorrt: TensorRtConfig | None = None
    """Null unless ``engine`` is ``tensorrt``."""
