"""The section ``distill.<student>`` of params.yaml."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, ConfigDict, Field, JsonValue, TypeAdapter, ValidationError, model_validator

from pipeline.core.config import Config
from pipeline.core.errors import InputError
from pipeline.models.pretrained import Source
from pipeline.training import OptimizerConfig

BUNDLED = "bundled"
"""Value of ``init`` for the bundled student's weights."""

Weight = Annotated[float, Field(ge=0)]


class EmbeddingRecipe(Config):
    """Distill the image embedding only: EfficientViT-SAM's first stage, MobileSAM."""

    kind: Literal["embedding"]
    distance: Literal["mse", "l1"] = "mse"


class FullStageRecipe(Config):
    """Distill embedding, tokens and masks, with ground truth: TinySAM's full-stage distillation."""

    kind: Literal["full_stage"]
    train: Literal["encoder", "all"] = "all"
    """``all`` also trains the mask decoder, initialized from the teacher's."""
    decoder_lr_share: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Factor on ``optimizer.lr`` for the mask decoder, which, unlike the encoder, starts from trained weights."""
    alpha: Weight = 1.0
    """Weight of the image embedding loss."""
    beta: Weight = 1.0
    """Weight of the loss on the two-way transformer's output tokens."""
    gamma: Weight = 1.0
    """Weight of the mask logits loss."""
    task_weight: Weight = 1.0
    """Weight of the loss of masks and predicted IoUs against ground truth."""
    hard_mask_weight: bool = True
    """Weight each mask's logits by how much worse the student is than the teacher."""
    rounds: Annotated[int, Field(ge=0, le=9)] = 9
    """Maximum number of rounds in which clicks move to regions the student misses; 0 keeps the first clicks."""
    prompts: Annotated[int, Field(ge=1, le=64)] = 16
    """Prompts per image, half boxes and half clicks."""
    box_jitter: Annotated[float, Field(ge=0)] = 0.1
    """Standard deviation of the noise on box coordinates, as a fraction of the side: SAM's; 0 for exact boxes."""


class PromptInTheLoopRecipe(Config):
    """Distill the teacher's masks, with clicks where they differ: EdgeSAM's prompt-in-the-loop distillation."""

    kind: Literal["prompt_in_the_loop"]
    train: Literal["encoder", "all"] = "all"
    """``all`` also trains the mask decoder, initialized from the teacher's."""
    decoder_lr_share: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor on ``optimizer.lr`` for the mask decoder."""
    loops: Annotated[int, Field(ge=1, le=10)] = 2
    """Number of decodings per step; before each but the first, every prompt gets one more click."""
    mask_prompt_probability: Annotated[float, Field(ge=0, le=1)] = 0.0
    """Probability that a decoding after the first also gets the student's previous mask as a prompt."""
    bce_weight: Weight = 5.0
    """Weight of the cross-entropy with the teacher's thresholded masks."""
    dice_weight: Weight = 5.0
    """Weight of the Dice loss with the teacher's thresholded masks."""
    embedding_weight: Weight = 0.0
    """Weight of the embedding's mean squared error; 0 as published, where the student was distilled by it before."""
    prompts: Annotated[int, Field(ge=1, le=64)] = 16
    """Prompts per image, half boxes and half clicks."""
    box_jitter: Annotated[float, Field(ge=0)] = 0.0
    """Standard deviation of the noise on box coordinates, as a fraction of the side; 0 for exact boxes."""


class LayerWiseRecipe(Config):
    """Distill layer features and the image embedding: SAM-Lightening's dynamic layer-wise distillation."""

    kind: Literal["layer_wise"]
    feature_layers: Annotated[list[Annotated[tuple[int, int], Field(strict=False)]], Field(min_length=1)]
    """Pairs of teacher block and student block, from input to output; see `pipeline.models.feature_layers`."""
    focus: Annotated[int, Field(ge=0)] = 2
    """Number of final pairs that have full weight from the start."""
    ramp_steps: Annotated[int, Field(ge=0)]
    """Number of steps until all pairs have full weight."""
    layer_weight: Weight = 1.0
    """Weight of the layer loss; the embedding loss has weight 1."""


class PretrainedRecipe(Source):
    """Take a student's weights from a published checkpoint or an artifact; nothing is trained.

    An image encoder alone gets the teacher's prompt encoder and mask decoder.
    """

    kind: Literal["pretrained"]


Recipe = Annotated[
    EmbeddingRecipe | FullStageRecipe | LayerWiseRecipe | PromptInTheLoopRecipe | PretrainedRecipe,
    Field(discriminator="kind"),
]


_Tokens = Annotated[int, Field(ge=1, le=1 << 20)]
_ATTENTION = TypeAdapter(
    list[Annotated[list[Annotated[list[_Tokens], Field(min_length=2, max_length=2)]], Field(min_length=1)]],
    config=ConfigDict(strict=True),
)


def _check_attention(options: dict[str, Any]) -> dict[str, Any]:
    """Check the option that is not a number or a name; the builder checks the rest."""
    if "attention" in options:
        try:
            _ATTENTION.validate_python(options["attention"])
        except ValidationError:
            raise ValueError("attention must list pairs [segment, interval] of tokens for each block") from None
    return options


class DistillConfig(Config):
    """Distillation of one student."""

    options: Annotated[dict[str, JsonValue], AfterValidator(_check_attention)] = {}
    """Keyword arguments of the student's builder, see `pipeline.models.build`."""
    recipe: Recipe
    init: Source | Literal["bundled"] | None = None
    """Initial weights of a recipe that trains: a whole model, an image encoder, or ``bundled`` for the encoder of the
    bundled student. Null starts the encoder from random weights. A student without its own prompt encoder and mask
    decoder gets its teacher's."""
    batch: Annotated[int, Field(ge=1)] = 16
    """Images per step, summed over all processes."""
    device: str = "auto"
    """Torch device: ``cpu``, ``cuda``; ``auto`` is a GPU if there is one."""
    optimizer: OptimizerConfig | None = None
    """Null only for ``pretrained``."""

    @model_validator(mode="after")
    def _trains_or_not(self) -> "DistillConfig":
        if self.recipe.kind == "pretrained":
            if self.optimizer is not None or self.init is not None:
                raise ValueError("a pretrained recipe trains nothing: remove optimizer and init")
        elif self.optimizer is None:
            raise ValueError(f"recipe {self.recipe.kind} trains: add its optimizer")
        return self

    @property
    def training(self) -> OptimizerConfig:
        """The training loop's settings.

        Raises:
            InputError: The recipe trains nothing.
        """
        if self.optimizer is None:
            raise InputError(f"recipe {self.recipe.kind} has no optimizer: choose a recipe that trains.")
        return self.optimizer
