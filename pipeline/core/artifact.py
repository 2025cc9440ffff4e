"""The one thing that flows between stages: a directory that says what it holds.

A stage fills a directory and returns its `Contents`; the frame adds the digests and writes the card as the last file.
A card holds nothing that changes when the payload does not (no time, host, run id or path of a machine), so equal
results have equal hashes.
"""

import hashlib
import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError

from pipeline.core.errors import InputError, Refused

CARD = "card.json"
METRICS = "metrics.json"
REFUSAL = "refusal.json"
"""All that a refusal holds beside its card: the same words, so that different refusals have different digests."""
REFUSALS = "refusals.json"
"""In a comparison: the candidates that were refused, with model and precision."""

Kind = Literal["dataset", "checkpoint", "embeddings", "onnx", "engine", "evaluation", "comparison", "refusal"]


class Calibration(BaseModel):
    """The images that ranges of a lowered model were taken from."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    images: int
    seed: int
    """That chose them from the calibration split."""
    digest: str
    """SHA-256 of their pixels, in hex."""


class Refusal(BaseModel):
    """Why a candidate did not pass: which rule of which stage it missed, and by how much."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    stage: str
    """Whose gate it is. Stages after that one carry the same refusal."""
    rule: str
    value: float | None
    """None where the rule has no figure, or it is not finite."""
    limit: float | None
    reason: str

    @classmethod
    def of(cls, stage: str, refused: Refused) -> "Refusal":
        """What a stage's gate raised."""
        return cls(stage=stage, rule=refused.rule, value=refused.value, limit=refused.limit, reason=refused.reason)

    def __str__(self) -> str:
        """The rule and the figure: ``build_engine.min_cosine: 0.958918, limit 0.97``."""
        if self.limit is None:
            return self.rule
        if self.value is None:
            return f"{self.rule}: not finite, limit {self.limit:g}"
        value = f"{self.value:.6g}"
        if value == f"{self.limit:.6g}":  # so near that they would read alike
            value = repr(self.value)
        return f"{self.rule}: {value}, limit {self.limit:g}"


class Contents(BaseModel):
    """What a stage says of the payload it wrote."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    kind: Kind
    model: str | None = None
    """Name for `pipeline.models.build`: a student or a teacher. None for what is no model."""
    options: dict[str, JsonValue] = {}
    """What that call takes beside the name: choices that decide the function but show in no weight."""
    precision: str | None = None
    load: dict[str, str | int | float | bool] = {}
    """What a loader needs beside the files: the engine's kind, its settings."""
    calibration: Calibration | None = None
    refusal: Refusal | None = Field(default=None, exclude_if=lambda value: value is None)
    """Of artifacts of kind ``refusal``, and on the cards of no others."""
    scratch: tuple[Path, ...] = Field(default=(), exclude=True)
    """Files and directories outside the artifact, from which an interrupted run goes on. They are not on the card."""

    def clear_away(self) -> None:
        """Remove what is ``scratch``; to be called when the artifact is in its place, and not before."""
        for path in self.scratch:
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)


class Card(Contents):
    """What an artifact is: enough to load it without knowing which stage wrote it."""

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
            return cls.model_validate_json(path.read_text())
        except (ValidationError, UnicodeDecodeError) as error:
            reason = " ".join(str(error).split())
            raise InputError(
                f"{path} is not a card this version can read: {reason}. Make it anew with `dvc repro`."
            ) from None

    @classmethod
    def verified(cls, directory: Path) -> "Card":
        """Read the card of ``directory``, and see that the payload beside it is the one that it was written for.

        Hashes the whole payload: about 1 GB/s.

        Raises:
            InputError: ``directory`` is not a finished artifact, or its files were changed since.
        """
        card = cls.read(directory)
        found = digest(directory)
        if found != card.digest:
            raise InputError(
                f"{directory} is damaged: its files have digest {found[:12]}, its {CARD} says {card.digest[:12]}. "
                f"Bring it back with `dvc checkout --force {directory}`, or make it anew with `dvc repro`."
            )
        return card

    @classmethod
    def seal(cls, directory: Path, contents: Contents, parents: Mapping[str, str]) -> "Card":
        """Write the card beside its payload, as the last file of a finished artifact."""
        card = cls(**contents.model_dump(), digest=digest(directory), parents=dict(sorted(parents.items())))
        (directory / CARD).write_text(card.model_dump_json(indent=2) + "\n")
        return card


def digest(directory: Path) -> str:
    """SHA-256 over the names and bytes of all files of ``directory`` but its card."""
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
    """Write JSON the one way we do: sorted keys, two spaces, a closing newline, no NaN."""
    path.write_text(json.dumps(value, indent=2, sort_keys=True, allow_nan=False) + "\n")


def write_metrics(directory: Path, metrics: Mapping[str, float]) -> None:
    """Write the numbers that DVC and MLflow show for this artifact."""
    write_json(directory / METRICS, dict(metrics))


def read_metrics(directory: Path) -> dict[str, float]:
    """The finite numbers of ``metrics.json``; none where there is no such file."""
    path = directory / METRICS
    values = json.loads(path.read_text()) if path.is_file() else {}
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    }


def write_refusals(directory: Path, refused: Mapping[tuple[str, str], Refusal]) -> None:
    """Write which candidates, by model and precision, a comparison goes without."""
    listed = [{"model": m, "precision": p, **refusal.model_dump()} for (m, p), refusal in refused.items()]
    write_json(directory / REFUSALS, listed)


def read_refusals(directory: Path) -> dict[str, Refusal]:
    """The candidates that a comparison goes without, by name; none where ``directory`` holds no comparison."""
    path = directory / REFUSALS
    listed = json.loads(path.read_text()) if path.is_file() else []
    return {f"{one.pop('model')} {one.pop('precision')}": Refusal(**one) for one in listed}
