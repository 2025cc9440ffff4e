"""Import the teacher's weights: the bundled ones, or a checkpoint of any model in the table."""

from pathlib import Path
from types import MappingProxyType

from pydantic import Field, JsonValue, field_validator

from pipeline.core.artifact import Contents, write_metrics
from pipeline.core.bundled import TEACHERS
from pipeline.core.config import Config
from pipeline.core.errors import InputError
from pipeline.core.log import Log
from pipeline.models import build
from pipeline.models.cost import count_parameters
from pipeline.models.pretrained import STORE, Source, load_parts, read_pretrained
from pipeline.models.sam import WEIGHTS, load_weights, save_checkpoint
from pipeline.models.students import MODELS

BUNDLED = MappingProxyType({"bundled": Path(__file__).parent / "bundled", **TEACHERS})
"""Teachers whose weights are in this package, and the directories of their weights."""


class TeacherConfig(Config):
    """The teacher model and its checkpoint."""

    name: str = Field(json_schema_extra={"enum": list(MODELS)})
    """A model of the table: ``bundled_v2``, ``bundled``, ``vit_b``, ``vit_l``, ``vit_h``, or a student, such as
    ``efficientvit_sam_xl1``."""
    checkpoint: str | None = None
    """Path or URL of its weights, see `pipeline.models.pretrained`; null for a bundled teacher."""
    sha256: str | None = Field(default=None, pattern="^[0-9a-fA-F]{64}$")
    """Expected SHA-256 of the checkpoint, in hex; null for a bundled teacher."""
    options: dict[str, JsonValue] = {}
    """Keyword arguments of the model's builder, see `pipeline.models.build`."""
    store: str = STORE
    """Download directory outside DVC, relative to ``SAM_DISTILLERY_STORE`` or the checkout."""

    @field_validator("name")
    @classmethod
    def _known(cls, name: str) -> str:
        if name not in MODELS:
            raise ValueError(f"no model has this name; known: {', '.join(MODELS)}")
        return name


def teacher(config: TeacherConfig, *, out: Path, log: Log) -> Contents:
    """Import the teacher's weights, loaded with strict keys.

    Args:
        config: Section ``teacher`` of params.yaml.
        out: Empty directory for the artifact.
        log: Receives the number of parameters.

    Raises:
        InputError: The checkpoint is missing, damaged, of another model, or its SHA-256 differs.
    """
    if config.name in BUNDLED:
        if config.checkpoint or config.sha256:
            raise InputError("params.yaml, section 'teacher': a bundled teacher has no checkpoint; set both to null.")
        sam = load_weights(build(config.name, config.options), BUNDLED[config.name] / WEIGHTS)
    else:
        if not config.checkpoint or not config.sha256:
            raise InputError(
                f"params.yaml, section 'teacher': {config.name} needs `checkpoint` (path or URL) and its `sha256`."
            )
        source = Source(checkpoint=config.checkpoint, sha256=config.sha256)
        state, path = read_pretrained(config.name, source, "teacher", config.store)
        sam = build(config.name, config.options)
        if load_parts(sam, state, path) != "whole":
            raise InputError(
                f"checkpoint {config.checkpoint} holds an image encoder alone, but a teacher needs its mask decoder: "
                "give a whole model."
            )
    save_checkpoint(sam, out)
    metrics = {"parameters": float(count_parameters(sam))}
    log(metrics)
    write_metrics(out, metrics)
    return Contents(kind="checkpoint", model=config.name, options=config.options, precision="fp32")
