"""The verb ``recipes``: what each part of a recipe of distillation is worth, on equal terms.

Every row is one training from the same fresh student with the same teacher, images, order and number of steps, measured
on the validation split as it leaves ``distill``, without alignment. Rows are appended to a results file; those that are
in it already are not measured again.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline.bench import results_file
from pipeline.bench.ablations.settings import RecipesSettings
from pipeline.core.artifact import Card
from pipeline.core.config import find, read_params, section
from pipeline.core.device import device_of
from pipeline.core.errors import InputError
from pipeline.core.log import silent
from pipeline.core.progress import progress
from pipeline.data.embeddings import Embeddings
from pipeline.data.shards import Shards
from pipeline.distill import DistillConfig, Task, learn, student_of
from pipeline.distill.embedding import held_out_error
from pipeline.embed import EmbedConfig, embed
from pipeline.models.sam import Sam
from pipeline.models.students import load_checkpoint
from pipeline.runtime.pytorch import TorchSegmenter

_EMBEDDING = {
    "kind": "full_stage", "train": "encoder", "decoder_lr_share": 0.2, "alpha": 1.0, "beta": 0.0, "gamma": 0.0,
    "task_weight": 0.0, "hard_mask_weight": False, "rounds": 0, "prompts": 4,
}  # fmt: skip
_TOKENS_MASKS = _EMBEDDING | {"beta": 1.0, "gamma": 1.0}
_HARD_PROMPTS = _TOKENS_MASKS | {"rounds": 9}
_HARD_MASK_WEIGHT = _HARD_PROMPTS | {"hard_mask_weight": True}
LADDER: Mapping[str, Mapping[str, Any]] = {
    "embedding": _EMBEDDING,
    "tokens_masks": _TOKENS_MASKS,
    "hard_prompts": _HARD_PROMPTS,
    "hard_mask_weight": _HARD_MASK_WEIGHT,
    "ground_truth": _HARD_MASK_WEIGHT | {"task_weight": 1.0, "train": "all"},
}
"""TinySAM's ablation, each rung with those before it; beyond it, ground truth's losses and a decoder that learns."""
_PROMPT_IN_THE_LOOP = {"kind": "prompt_in_the_loop", "prompts": 4}
OTHERS: Mapping[str, Mapping[str, Any]] = {
    "plain": {"kind": "embedding", "distance": "mse"},
    "full_stage": {"kind": "full_stage", "prompts": 4},
    "prompt_in_the_loop": _PROMPT_IN_THE_LOOP,
    "prompt_in_the_loop_embedding": _PROMPT_IN_THE_LOOP | {"embedding_weight": 1.0},
}
"""Recipes with their defaults and as many prompts as the ladder; EdgeSAM's also with a loss of the embedding, which a
fresh student needs."""
FEATURE_LAYERS: Mapping[str, Sequence[tuple[int, int]]] = {
    "sam_lightening_nano": ((1, 0), (2, 1), (3, 2), (4, 3)),
    "tinysam_nano": ((1, 2), (4, 5)),
    "efficientvit_sam_nano": ((1, 5), (4, 8)),
}
"""Blocks of the bundled teacher and of its students that are compared layer by layer."""
RECIPES = (*LADDER, *OTHERS, "layer_wise")
"""What can be asked for: ``plain`` is the embedding's mean squared error, which ``layer_wise`` adds to."""


@dataclass(frozen=True)
class Row:
    """One training."""

    data: str
    """Digest of the dataset, its first 12 characters."""
    student: str
    recipe: str
    steps: int
    seed: int
    settings: str
    """Digest of the whole recipe and of the teacher, its first 12 characters: other settings are another row."""


def recipes(settings: RecipesSettings) -> list[dict[str, Any]]:
    """Train and measure all combinations of students, recipes and seeds that the results file lacks.

    Returns:
        The rows, the teacher's first.

    Raises:
        InputError: A name is unknown, or an artifact is missing.
    """
    for name in settings.recipes:
        if name not in RECIPES:
            raise InputError(f"unknown recipe {name!r}: there is {', '.join(RECIPES)}.")
    data, source = (Card.read(settings.artifacts / name).digest for name in ("prepare", "teacher"))
    measured = {_key(row): row for row in results_file.read(settings.out)}

    def digest(config: DistillConfig | None) -> str:
        return hashlib.sha256(f"{source} {config.model_dump_json() if config else ''}".encode()).hexdigest()[:12]

    asked: dict[Row, DistillConfig | None] = {Row(data[:12], "teacher", "", 0, 0, digest(None)): None}
    for seed, student, recipe in product(settings.seeds, settings.students, settings.recipes):
        config = _config(student, recipe, settings.steps, seed)
        asked[Row(data[:12], student, recipe, settings.steps, seed, digest(config))] = config
    with TemporaryDirectory(prefix="recipes-") as directory:
        for row in progress([row for row in asked if row not in measured], "recipes", "training"):
            measured[row] = _measure(row, asked[row], settings.artifacts, Path(directory))
            results_file.append(settings.out, measured[row])
    return [measured[row] for row in asked]


def table(measured: Sequence[Mapping[str, Any]]) -> str:
    """Mean over seeds, and the largest distance from it; mIoU in points, the first row being the teacher's."""
    lines = ["| student | recipe | steps | box mIoU | click mIoU | cosine | seeds |", "|---|---|---|---|---|---|---|"]
    groups: dict[tuple[str, str, int], list[Mapping[str, Any]]] = {}
    for row in measured:
        groups.setdefault((row["student"], row["recipe"], row["steps"]), []).append(row)
    for (student, recipe, steps), members in groups.items():
        figures = [
            results_file.mean_and_spread([scale * member[name] for member in members], digits)
            for name, scale, digits in (("box_miou", 100, 2), ("click_miou", 100, 2), ("cosine", 1, 4))
        ]
        lines.append(f"| {student} | {recipe} | {steps} | {' | '.join(figures)} | {len(members)} |")
    return "\n".join(lines)


def _key(row: Mapping[str, Any]) -> Row:
    """What a row of the file was of; one of an earlier version, without its settings, is like none that is asked."""
    return Row(**{name: row.get(name, "") for name in Row.__dataclass_fields__})


def _measure(row: Row, config: DistillConfig | None, artifacts: Path, directory: Path) -> dict[str, Any]:
    """What a row comes to; without a config it is the teacher's."""
    cosine = 1.0
    sam = load_checkpoint(artifacts / "teacher")
    if config:
        sam, cosine = _trained(row, config, artifacts, directory)
    return vars(row) | results_file.accuracy(TorchSegmenter(sam), artifacts / "prepare") | {"cosine": cosine}


def _trained(row: Row, config: DistillConfig, artifacts: Path, directory: Path) -> tuple[Sam, float]:
    """The student, and the mean cosine of its embeddings to the teacher's on the calibration split."""
    feature_layers = FEATURE_LAYERS.get(row.student, ())
    prepared, teacher, cache = (artifacts / name for name in ("prepare", "teacher", "embed"))
    if row.recipe == "layer_wise":
        if not feature_layers:
            raise InputError(
                f"nothing says which blocks of {row.student} to compare: known are {', '.join(FEATURE_LAYERS)}."
            )
        cache = _cache_with_features(artifacts, directory, sorted({theirs for theirs, _ in feature_layers}))
    task = Task(
        sam=student_of(teacher, row.student, row.seed, config.options, config.init),
        teacher=teacher,
        images=Shards(prepared, "train"),
        embeddings=Embeddings(cache),
        config=config,
        device=device_of(config.device, f"distill.{row.student}.device"),
        log=silent,
        checkpoint=None,
    )
    learn(task)
    return task.sam, held_out_error(replace(task, images=Shards(prepared, "calibration")))["embedding_cosine"]


def _config(student: str, name: str, steps: int, seed: int) -> DistillConfig:
    """The student's section of params.yaml with this recipe, these steps and this seed."""
    given = find(read_params(), f"distill.{student}")
    if name == "layer_wise":
        pairs = [list(pair) for pair in FEATURE_LAYERS[student]] if student in FEATURE_LAYERS else [[0, 0]]
        recipe: Mapping[str, Any] = {
            "kind": "layer_wise",
            "feature_layers": pairs,
            "focus": 2,
            "ramp_steps": steps // 2,
            "layer_weight": 1.0,
        }
    else:
        recipe = {**LADDER, **OTHERS}[name]
    share = steps / given["optimizer"]["steps"]
    lengths = {key: round(share * given["optimizer"][key]) for key in ("warmup_steps", "cooldown_steps")}
    optimizer = given["optimizer"] | lengths | {"steps": steps, "seed": seed}
    changed = {"distill": {student: given | {"recipe": dict(recipe), "optimizer": optimizer}}}
    return section(changed, f"distill.{student}", DistillConfig)


def _cache_with_features(artifacts: Path, directory: Path, feature_layers: list[int]) -> Path:
    """An artifact of ``embed`` with the features of these layers, kept as long as the directory; same store."""
    out = directory / f"embed-{'-'.join(map(str, feature_layers))}"
    if not out.exists():
        out.mkdir()
        config = section(read_params(), "embed", EmbedConfig).model_copy(update={"feature_layers": feature_layers})
        embed(config, prepare=artifacts / "prepare", teacher=artifacts / "teacher", out=out, log=silent)
    return out
