"""Artifacts: self-describing directories, the only thing passed between stages.

A stage fills a directory and returns its `Contents`; the framework adds the digests and writes the card as the last
file. A card contains nothing that varies for the same payload (no time, host, run id or absolute path), so equal
results have equal hashes.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from pipeline.core import scratch
from pipeline.core.errors import InputError, Refused
from pipeline.core.untrusted import json_file
from pipeline.core.untrusted.regular_file import read_text
from pipeline.core.untrusted.segmentation import is_number

CARD = "card.json"
METRICS = "metrics.json"
REFUSAL = "refusal.json"
"""The only payload file of a refusal, a copy of its card's entry, so that different refusals have different digests."""
BASELINES = "baselines.json"
"""In the teacher's evaluation: what trivial masks score."""
DATASETS = "datasets.json"
"""In an evaluation: digest and size of each data set, by the prefix of its metrics."""
PHOTOGRAPHS = "photographs.json"
"""File with masks of real photographs, in an evaluation."""
REFUSALS = "refusals.json"
"""File of a comparison that lists the refused candidates, with model and precision."""

_LARGEST = 64 << 20
"""Bytes of a card or a file of numbers."""
_REMEDY = "Recreate it with `dvc repro`."

Kind = Literal["dataset", "checkpoint", "embeddings", "onnx", "engine", "evaluation", "comparison", "refusal"]


class Calibration(BaseModel):
    """The images that a quantized model was calibrated on."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    images: int
    seed: int
    """Seed of their selection from the calibration split."""
    digest: str
    """SHA-256 of their pixels, in hex."""


class Refusal(BaseModel):
    """Why a candidate was refused: the stage, the rule it missed, and by how much."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    stage: str
    """The stage whose gate refused it. Later stages pass the same refusal on."""
    rule: str
    value: float | None
    """None if the rule has no figure, or it is not finite."""
    limit: float | None
    reason: str

    @classmethod
    def of(cls, stage: str, refused: Refused) -> "Refusal":
        """Build from the exception of a stage's gate."""
        return cls(stage=stage, rule=refused.rule, value=refused.value, limit=refused.limit, reason=refused.reason)

    def __str__(self) -> str:
        """Rule and figure: ``build_engine.min_cosine: 0.958918, limit 0.97``."""
        if self.limit is None:
            return self.rule
        if self.value is None:
            return f"{self.rule}: not finite, limit {self.limit:g}"
        value = f"{self.value:.6g}"
        if value == f"{self.limit:.6g}":  # too close to distinguish in six digits
            value = repr(self.value)
        return f"{self.rule}: {value}, limit {self.limit:g}"


class Contents(BaseModel):
    """A stage's description of the payload it wrote."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    kind: Kind
    model: str | None = None
    """Name for `pipeline.models.build`: a student or a teacher. None for artifacts without a model."""
    options: dict[str, JsonValue] = {}
    """Options for `pipeline.models.build`: choices that decide the function but are not visible in the weights."""
    precision: str | None = None
    load: dict[str, str | int | float | bool] = {}
    """Loading parameters beside the files: the engine's kind, its settings."""
    calibration: Calibration | None = None
    refusal: Refusal | None = Field(default=None, exclude_if=lambda value: value is None)
    """Present only for artifacts of kind ``refusal``."""
    scratch: tuple[Path, ...] = Field(default=(), exclude=True)
    """Files and directories outside the artifact from which an interrupted run resumes. Not on the card."""

    def remove_scratch(self) -> None:
        """Delete ``scratch``. Call only once the artifact is complete and in its final location."""
        scratch.delete(self.scratch)


class Card(Contents):
    """Description of an artifact, sufficient to load it without knowing which stage wrote it."""

    digest: str
    """SHA-256 of the payload files' names and bytes, in hex."""
    parents: dict[str, str]
    """Digests of the artifacts this one was made from, by stage."""

    @classmethod
    def read(cls, directory: Path) -> "Card":
        """Read the card of ``directory``.

        Raises:
            InputError: ``directory`` is not a finished artifact.
        """
        path = directory / CARD
        if not path.is_file():
            raise InputError(f"{directory} is not an artifact: it has no {CARD}. Run `dvc repro` or `dvc pull`.")
        try:
            return cls.model_validate_json(read_text(path, _LARGEST, remedy="Recreate it with `dvc repro`."))
        except ValidationError as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"{path} is not a card this version can read: {reason}. Recreate it with `dvc repro`."
            ) from None

    @classmethod
    def verified(cls, directory: Path) -> "Card":
        """Read the card of ``directory`` and verify the payload against it.

        Hashes the whole payload, at about 1 GB/s.

        Raises:
            InputError: ``directory`` is not a finished artifact, or its files have changed.
        """
        card = cls.read(directory)
        actual = digest(directory)
        if actual != card.digest:
            raise InputError(
                f"{directory} is damaged: its files have digest {actual[:12]}, its {CARD} says {card.digest[:12]}. "
                f"Restore it with `dvc checkout --force {directory}`, or recreate it with `dvc repro`."
            )
        return card

    @classmethod
    def seal(cls, directory: Path, contents: Contents, parents: Mapping[str, str]) -> "Card":
        """Write the card, the last file of a finished artifact."""
        card = cls(**contents.model_dump(), digest=digest(directory), parents=dict(sorted(parents.items())))
        (directory / CARD).write_text(card.model_dump_json(indent=2) + "\n")
        return card


def digest(directory: Path) -> str:
    """SHA-256 over the names and bytes of all files in ``directory`` except its card."""
    total = hashlib.sha256()
    for path in sorted(p for p in directory.rglob("*") if p.is_file() and p != directory / CARD):
        name = path.relative_to(directory).as_posix().encode()
        total.update(f"{len(name)}:".encode() + name)
        total.update(bytes.fromhex(file_sha256(path)))
    return total.hexdigest()


def file_sha256(path: Path) -> str:
    """SHA-256 of one file, in hex."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def write_json(path: Path, value: object) -> None:
    """Write JSON with sorted keys, two spaces, a final newline and no NaN."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def write_metrics(directory: Path, metrics: Mapping[str, float]) -> None:
    """Write the numbers that DVC and MLflow show for this artifact."""
    write_json(directory / METRICS, dict(metrics))


def read_metrics(directory: Path) -> dict[str, float]:
    """The finite numbers of ``metrics.json``; empty if there is no such file."""
    path = directory / METRICS
    values = json_file.load(path, _LARGEST, remedy=_REMEDY) if path.is_file() else {}
    if not isinstance(values, dict):
        raise InputError(f"{path} must be an object of numbers, not {json_file.shown(values)}. {_REMEDY}")
    return {name: float(value) for name, value in values.items() if is_number(value)}


def write_refusals(directory: Path, refused: Mapping[tuple[str, str], Refusal]) -> None:
    """Write the candidates, by model and precision, that are missing from a comparison because they were refused."""
    listed = [{"model": m, "precision": p, **refusal.model_dump()} for (m, p), refusal in refused.items()]
    write_json(directory / REFUSALS, listed)


def read_refusals(directory: Path) -> dict[str, Refusal]:
    """The refused candidates of a comparison, by name; empty if ``directory`` holds no comparison."""
    path = directory / REFUSALS
    entries = json_file.load(path, _LARGEST, remedy=_REMEDY) if path.is_file() else []
    try:
        return {f"{entry.pop('model')} {entry.pop('precision')}": Refusal(**entry) for entry in entries}
    except (ValidationError, KeyError, TypeError, AttributeError):
        raise InputError(f"{path} is not a list of refusals. {_REMEDY}") from None
