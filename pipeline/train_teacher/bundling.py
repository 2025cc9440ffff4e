"""Weights that are part of this package: half precision, held-out figures, replacement of the files."""

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

from safetensors.torch import save_file
from torch import Tensor

from pipeline.core import atomic
from pipeline.core.artifact import CARD
from pipeline.models.sam import WEIGHTS, Sam
from pipeline.train_teacher import photographs as photos
from pipeline.train_teacher.frame import Picture
from pipeline.train_teacher.monitor import SCENES_SEED, subject
from pipeline.train_teacher.validation import accuracy, held_out_scenes, trivial

TRAINING = "training.json"
"""Describes the weights: data, recipe, steps and held-out accuracy."""
SCENES = 200
"""Rendered scenes of the figures."""


def held_out(sam: Sam, validation: Sequence[Picture]) -> dict[str, float]:
    """Measure accuracy on photographs and scenes that no training has seen, beside trivial masks."""
    sets = {
        "photographs": [subject(picture) for picture in validation],
        "scenes": held_out_scenes(SCENES, SCENES_SEED, photos.SCENE_SIDE),
    }
    metrics: dict[str, float] = {}
    for name, subjects in sets.items():
        figures = accuracy(sam, subjects) | trivial(subjects)
        metrics |= {f"{name}_{key}": value for key, value in figures.items()}
        metrics[f"{name}_instances"] = float(sum(len(s.masks) for s in subjects))
    return metrics


def compact(state: Mapping[str, Tensor], path: Path) -> None:
    """Write weights in half precision. Figures on cards are those of the weights as read back."""
    save_file({k: (v.half() if v.is_floating_point() else v).contiguous() for k, v in state.items()}, path)


def install_files(source: Path, target: Path) -> None:
    """Replace the bundled artifact ``target`` by ``source``, the card last."""
    target.mkdir(exist_ok=True)
    for name in (WEIGHTS, TRAINING, CARD):
        with atomic.replacing(target / name) as draft:
            shutil.copyfile(source / name, draft)


def summary(directory: Path, metrics: Mapping[str, float]) -> str:
    """Directory and held-out accuracy, in one line."""
    accuracies = (f"{key.replace('_', ' ')} {metrics[key]:.3f}" for key in metrics if key.endswith("_miou"))
    return f"{directory}: {', '.join(accuracies)}"
