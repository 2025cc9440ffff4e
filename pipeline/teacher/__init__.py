"""Import the teacher's weights: the bundled ones, or an official Segment Anything checkpoint."""

from pathlib import Path
from typing import Literal

from pipeline.core.artifact import Contents, write_metrics
from pipeline.core.checkout import store_path
from pipeline.core.config import Config
from pipeline.core.errors import InputError
from pipeline.core.log import Log
from pipeline.models import build
from pipeline.models.cost import count_parameters
from pipeline.models.sam import load_state, load_weights, save_checkpoint
from pipeline.teacher.checkpoint import fetch, read

BUNDLED = Path(__file__).parent / "bundled"


class TeacherConfig(Config):
    """The teacher model and its checkpoint."""

    name: Literal["bundled", "vit_b", "vit_l", "vit_h"]
    checkpoint: str | None = None
    """Path or https URL of an official ``.pth`` file; null for the bundled teacher."""
    sha256: str | None = None
    """Expected SHA-256 of the checkpoint, in hex; null for the bundled teacher."""
    store: str = ".store/checkpoints"
    """Download directory outside DVC, relative to ``SAM_DISTILLERY_STORE`` or the checkout."""


def teacher(config: TeacherConfig, *, out: Path, log: Log) -> Contents:
    """Import the teacher's weights, loaded with strict keys.

    Args:
        config: Section ``teacher`` of params.yaml.
        out: Empty directory for the artifact.
        log: Receives the number of parameters.

    Raises:
        InputError: The checkpoint is missing, damaged, of another model, or its SHA-256 differs.
    """
    if config.name == "bundled":
        if config.checkpoint or config.sha256:
            raise InputError("params.yaml, section 'teacher': the bundled teacher has no checkpoint; set both to null.")
        sam = load_weights(build(config.name), BUNDLED / "model.safetensors")
    else:
        if not config.checkpoint or not config.sha256:
            raise InputError(
                f"params.yaml, section 'teacher': {config.name} needs `checkpoint` (path or URL) and its `sha256`."
            )
        path = fetch(config.checkpoint, config.sha256, store_path(config.store))
        state = read(path)
        sam = build(config.name)
        load_state(sam, state, path)
    save_checkpoint(sam, out)
    metrics = {"parameters": float(count_parameters(sam))}
    log(metrics)
    write_metrics(out, metrics)
    return Contents(kind="checkpoint", model=config.name, precision="fp32")
