"""Train the bundled teacher, measure it on held-out scenes, and save it with a card.

The recipe is ``pipeline/teacher/bundled/train.yaml``, beside the weights. ``install`` replaces the bundled weights.
"""

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import torch
import yaml
from safetensors.torch import save_file

from pipeline.core import atomic, code
from pipeline.core.artifact import Card, Contents, write_json
from pipeline.core.config import section
from pipeline.core.errors import InputError
from pipeline.core.log import silent
from pipeline.core.stage import ARTIFACTS
from pipeline.evaluate import EvaluateConfig, LatencyConfig, evaluate_teacher
from pipeline.models.cost import count_parameters
from pipeline.models.sam import WEIGHTS, Sam, load_weights, save_checkpoint
from pipeline.prepare import PrepareConfig, prepare
from pipeline.prepare.sources import Procedural
from pipeline.teacher import BUNDLED
from pipeline.tracking import tracked
from pipeline.train_teacher.training import TrainTeacherConfig, train
from pipeline.training import checkpoint_of

RECIPE = BUNDLED / "train.yaml"
MODEL_CARD = "card.json"
HELD_OUT_SCENES, HELD_OUT_SEED = 200, 90210


def train_teacher(device: str, install: bool) -> str:
    """Train the bundled teacher by its recipe; an interrupted training resumes.

    Args:
        device: As torch names it.
        install: Replace the bundled weights.

    Returns:
        Directory and held-out accuracy, in one line.

    Raises:
        InputError: The recipe is invalid.
    """
    recipe = yaml.safe_load(RECIPE.read_text())
    config = section({"train_teacher": recipe}, "train_teacher", TrainTeacherConfig, RECIPE)
    if config.scenes_seed == HELD_OUT_SEED:
        raise InputError(f"{RECIPE}: scenes_seed {HELD_OUT_SEED} is the held-out scenes' seed; choose another.")
    out = ARTIFACTS / "train_teacher"
    with tracked("train_teacher", recipe) as log:
        checkpoint = checkpoint_of("train_teacher", config.model_dump_json(), code.digest(train.__module__), device)
        sam = train(config, device=device, log=log, checkpoint=checkpoint).to("cpu").eval()
        out.mkdir(parents=True, exist_ok=True)
        compact(sam, out / WEIGHTS)
        metrics = held_out(load_weights(sam, out / WEIGHTS))
        log(metrics)
    write_json(out / MODEL_CARD, describe(sam, config, metrics))
    checkpoint.unlink(missing_ok=True)
    if install:
        for name in (WEIGHTS, MODEL_CARD):
            with atomic.replacing(BUNDLED / name) as draft:
                shutil.copyfile(out / name, draft)
    directory = BUNDLED if install else out
    box, click = metrics["box_miou"], metrics["click_miou"]
    return f"{directory}: box mIoU {box:.3f}, click mIoU {click:.3f} on {HELD_OUT_SCENES} scenes"


def held_out(sam: Sam) -> dict[str, float]:
    """Measure accuracy by the protocol of ``evaluate``, on scenes of a seed that neither training nor a preset uses."""
    with tempfile.TemporaryDirectory() as folder:
        data, teacher, out = (Path(folder) / name for name in ("prepare", "teacher", "evaluate_teacher"))
        for directory in (data, teacher, out):
            directory.mkdir()
        scenes = Procedural(
            kind="procedural", side_px=sam.image_size, train=1, calibration=1, validation=HELD_OUT_SCENES,
            seed=HELD_OUT_SEED,
        )  # fmt: skip
        prepare(PrepareConfig(data=".", source=scenes), out=data, log=silent)
        save_checkpoint(sam, teacher)
        Card.seal(teacher, Contents(kind="checkpoint", model="bundled", precision="fp32"), {})
        untimed = LatencyConfig(warmup=0, runs=0)
        config = EvaluateConfig(
            data=str(data), feed_back=False, pictures=0, photographs=False, everything=None, latency=untimed
        )
        evaluate_teacher(config, prepare=data, teacher=teacher, out=out, log=silent).remove_scratch()
        metrics: dict[str, float] = json.loads((out / "metrics.json").read_text())
    return {name: value for name, value in metrics.items() if "miou" in name or name == "instances"}


def compact(sam: Sam, path: Path) -> None:
    """Write the weights in half precision, and the attention blocks' matrices as 8-bit floats (e4m3).

    Those matrices are half of the encoder. The card's figures are those of the weights as read back.
    """
    tensors = {}
    for key, value in sam.state_dict().items():
        matrix = key.startswith("image_encoder.blocks.") and value.ndim == 2
        real = torch.float8_e4m3fn if matrix else torch.float16
        tensors[key] = (value.to(real) if value.is_floating_point() else value).contiguous()
    save_file(tensors, path)


def describe(sam: Sam, config: TrainTeacherConfig, metrics: Mapping[str, float]) -> dict[str, object]:
    """Describe the weights: model, training data and held-out accuracy."""
    return {
        "model": "bundled",
        "parameters": count_parameters(sam),
        "data": {"source": "pipeline.data.scenes", "scenes": config.scenes, "seed": config.scenes_seed},
        "steps": config.optimizer.total_steps(config.scenes, config.batch),
        "scenes_per_step": config.batch,
        "prompts_per_scene": config.prompts,
        "held_out": {"scenes": HELD_OUT_SCENES, "seed": HELD_OUT_SEED},
        "metrics": {name: round(value, 4) for name, value in metrics.items()},
    }
