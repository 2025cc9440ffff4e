"""The section ``distill.<student>`` of params.yaml."""

from typing import Annotated, Literal

from pydantic import Field, JsonValue

from pipeline.core.config import Config
from pipeline.training import OptimizerConfig

Weight = Annotated[float, Field(ge=0)]


class EmbeddingRecipe(Config):
    """The image embedding alone: EfficientViT-SAM's first stage, MobileSAM."""

    kind: Literal["embedding"]
    distance: Literal["mse", "l1"] = "mse"


class FullStageRecipe(Config):
    """Embedding, tokens, masks and ground truth: TinySAM's full-stage distillation."""

    kind: Literal["full_stage"]
    train: Literal["encoder", "all"] = "all"
    """``all`` trains the mask decoder too, which starts as the teacher's."""
    decoder_lr_share: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Of ``optimizer.lr`` for the mask decoder: it has been trained, the encoder has not."""
    alpha: Weight = 1.0
    """Of the image embedding."""
    beta: Weight = 1.0
    """Of the two-way transformer's output tokens."""
    gamma: Weight = 1.0
    """Of the mask logits."""
    task_weight: Weight = 1.0
    """Of the masks and predicted IoUs against ground truth."""
    hard_mask_weight: bool = True
    """Weigh each mask's logits by how much worse than the teacher the student is there."""
    rounds: Annotated[int, Field(ge=0, le=9)] = 9
    """Most rounds in which clicks move to what the student misses; 0 leaves them where they fell."""
    prompts: Annotated[int, Field(ge=1, le=64)] = 16
    """On each image, half of them boxes, half of them clicks."""


class LayerWiseRecipe(Config):
    """Features of layers beside the image embedding: SAM-Lightening's dynamic layer-wise distillation."""

    kind: Literal["layer_wise"]
    feature_layers: Annotated[list[Annotated[tuple[int, int], Field(strict=False)]], Field(min_length=1)]
    """Pairs of a teacher's and a student's block, from the image to the embedding; `pipeline.models.feature_layers`."""
    focus: Annotated[int, Field(ge=0)] = 2
    """How many of the last pairs count from the start."""
    ramp_steps: Annotated[int, Field(ge=0)]
    """Steps after which all pairs count in full."""
    layer_weight: Weight = 1.0
    """Of the layers together, beside 1 for the embedding."""


Recipe = Annotated[EmbeddingRecipe | FullStageRecipe | LayerWiseRecipe, Field(discriminator="kind")]


class DistillConfig(Config):
    """How one student learns from its teacher."""

    options: dict[str, JsonValue] = {}
    """What the student's builder takes, see `pipeline.models.build`; ``{}`` where it has no choices."""
    recipe: Recipe
    batch: Annotated[int, Field(ge=1)] = 16
    """Images in a step, over all processes."""
    device: str = "cpu"
    optimizer: OptimizerConfig
