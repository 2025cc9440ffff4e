"""The section ``align.<student>`` of params.yaml."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.core.config import Config
from pipeline.training import OptimizerConfig


class AlignConfig(Config):
    """How one student is aligned with ground truth."""

    train: Literal["decoder", "all"] = "decoder"
    """Train the mask decoder behind a frozen encoder, or both end to end."""
    batch: Annotated[int, Field(ge=1)] = 8
    """Images per step, over all processes."""
    masks: Annotated[int, Field(ge=1, le=64)] = 32
    """Masks per image, each prompted by a box or by clicks with equal probability."""
    clicks: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=2, max_length=2)] = [1, 10]
    """Minimum and maximum number of clicks on a mask."""
    mask_loss: Literal["focal_dice", "bce_points"] = "focal_dice"
    """The papers' focal and Dice losses, or EfficientViT-SAM's code: cross-entropy and Dice on uncertain points."""
    single_mask_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Share of steps that train the single-mask output; the others train the best of three."""
    flip: bool = True
    """Mirror images with probability 0.5."""
    keep_embeddings: bool = False
    """Encode each image once and keep its embedding in memory: 2 MiB per image at SAM's size, 128 KiB for nano."""
    device: str = "cpu"
    optimizer: OptimizerConfig

    @model_validator(mode="after")
    def _fits_together(self) -> "AlignConfig":
        if self.clicks[0] > self.clicks[1]:
            raise ValueError(f"clicks {self.clicks} must be the minimum and the maximum, in that order")
        if self.keep_embeddings and self.train == "all":
            raise ValueError("a trained encoder's embeddings change: set keep_embeddings to false")
        if self.keep_embeddings and self.flip:
            raise ValueError("kept embeddings are those of unmirrored images: set keep_embeddings or flip to false")
        return self
