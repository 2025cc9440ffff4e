"""The section ``align.<student>`` of params.yaml."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from pipeline.core.config import Config
from pipeline.training import OptimizerConfig


class AlignConfig(Config):
    """Training of one student on ground truth masks."""

    train: Literal["decoder", "all"] = "decoder"
    """Train the mask decoder on a frozen encoder, or both end to end."""
    batch: Annotated[int, Field(ge=1)] = 8
    """Images per step, summed over all processes."""
    masks: Annotated[int, Field(ge=1, le=64)] = 32
    """Masks per image, each prompted by a box or by clicks with equal probability."""
    clicks: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=2, max_length=2)] = [1, 10]
    """Minimum and maximum number of clicks on a mask."""
    box_jitter: Annotated[float, Field(ge=0)] = 0.0
    """Standard deviation of the noise on box coordinates, as a fraction of the side; 0 prompts with exact boxes."""
    mask_loss: Literal["focal_dice", "bce_points"] = "focal_dice"
    """Focal and Dice loss (the papers), or cross-entropy and Dice on uncertain points (EfficientViT-SAM's code)."""
    iou_weight: Annotated[float, Field(ge=0)] = 1.0
    """Weight of the predicted IoUs' squared error; 0 leaves the IoU head untrained, as EfficientViT-SAM's code does."""
    teacher_weight: Annotated[float, Field(ge=0)] = 0.0
    """Weight of the error of the student's mask logits to the teacher's for the same prompts, relative to the
    teacher's scale; 0 trains on ground truth only and reads no embedding."""
    single_mask_share: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Fraction of steps that train the single-mask output; the others train the best of the three multimasks."""
    flip: bool = True
    """Flip images horizontally with probability 0.5."""
    keep_embeddings: bool = False
    """Encode each image once and cache its embedding in memory: 2 MiB per image at SAM's size, 128 KiB for nano,
    and as much again for the teacher's with ``teacher_weight``."""
    device: str = "auto"
    """Torch device: ``cpu``, ``cuda``; ``auto`` is a GPU if there is one."""
    optimizer: OptimizerConfig

    @model_validator(mode="after")
    def _fits_together(self) -> "AlignConfig":
        if self.clicks[0] > self.clicks[1]:
            raise ValueError(f"clicks {self.clicks} must be the minimum and the maximum, in that order")
        if self.keep_embeddings and self.train == "all":
            raise ValueError("embeddings cannot be cached while the encoder is trained: set keep_embeddings to false")
        if self.keep_embeddings and self.flip:
            raise ValueError("cached embeddings are of unflipped images: set keep_embeddings or flip to false")
        if self.teacher_weight and self.flip:
            raise ValueError(
                "the teacher's embeddings are of unflipped images: set teacher_weight to 0 or flip to false"
            )
        return self
