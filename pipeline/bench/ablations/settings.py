"""What the ablations compare. Each field is an option of the command line."""

from pathlib import Path
from typing import Annotated

from pydantic import Field

from pipeline.core.config import Config

_Names = Annotated[tuple[str, ...], Field(min_length=1)]
_Seeds = Annotated[tuple[Annotated[int, Field(ge=0)], ...], Field(min_length=1)]


class RecipesSettings(Config):
    """Options of `ablations recipes`."""

    students: _Names
    """Students with a section distill.<student> in params.yaml."""
    recipes: _Names = ("embedding", "tokens_masks", "hard_prompts", "hard_mask_weight", "ground_truth")
    """Recipes to train by: the default's five, each of which adds one thing to the one before, plain, layer_wise,
    full_stage, prompt_in_the_loop and prompt_in_the_loop_embedding."""
    seeds: _Seeds = (0, 1, 2)
    """Seeds of the weights, the order of images and the prompts."""
    steps: Annotated[int, Field(ge=1)] = 80
    """Steps of each training; warm-up and cool-down keep their shares of them."""
    artifacts: Path = Path("artifacts")
    """Directory with the artifacts of prepare, teacher and embed."""
    out: Path = Path("recipes.jsonl")
    """Results file, JSON lines; rows in it are not measured again."""


class QuantizationSettings(Config):
    """Options of `ablations quantization`."""

    students: _Names
    """Students, all of them aligned."""
    methods: _Names = ("max", "percentile", "modelopt_entropy", "search", "search_split")
    """Methods that find scales: the default's, entropy and modelopt_max."""
    widths: _Names = ("w8a8", "w6a6", "w4a8")
    """Bits of weights and activations: the default's, and w8a8_reduced, which processors get."""
    seeds: _Seeds = (0, 1, 2)
    """Seeds that choose the calibration images."""
    attention: bool = False
    """Also quantize products of two activations."""
    checkpoints: Path = Path("artifacts/align")
    """Directory with a checkpoint artifact per student."""
    dataset: Path = Path("artifacts/prepare")
    """Artifact of prepare."""
    out: Path = Path("quantization.jsonl")
    """Results file, JSON lines; rows in it are not measured again."""
