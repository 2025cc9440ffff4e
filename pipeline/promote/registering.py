"""Registration of the leaderboard's best student as challenger."""

from collections.abc import Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated, Any

import mlflow
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from pipeline.core.artifact import Card, file_sha256
from pipeline.core.errors import InputError
from pipeline.core.stage import ARTIFACTS
from pipeline.core.untrusted import json_file
from pipeline.core.untrusted.regular_file import MissingFileError
from pipeline.ops.gate import PromoteConfig, best
from pipeline.ops.metrics import TRIVIAL
from pipeline.promote import about, changes, instances, lineage, registry
from pipeline.promote.about import Subject
from pipeline.promote.champion import INSTANCES, open_store
from pipeline.promote.instances import Instances
from pipeline.promote.registry import CHALLENGER
from pipeline.tracking import Store

LEADERBOARD = ARTIFACTS / "compare" / "leaderboard.json"
_MEASURED = ("box_miou", "click_miou", "latency_ms", "size_mib", "memory_mib")

_LARGEST = 64 << 20
"""Bytes of the leaderboard."""
_Metric = Annotated[float, Field(allow_inf_nan=False)] | None


class _Row(BaseModel):
    """What commands need of a row."""

    model_config = ConfigDict(extra="allow", strict=True)

    model: str
    precision: str
    role: str
    artifact: str | None = None
    digest: str | None = None
    box_miou: _Metric = None
    click_miou: _Metric = None
    latency_ms: _Metric = None
    size_mib: _Metric = None
    memory_mib: _Metric = None
    __pydantic_extra__: dict[str, JsonValue]


_Rows = Annotated[list[_Row], Field(min_length=1)]

_NOTCH = 1.57
"""Half width of a median's 95 % interval in interquartile ranges over the root of the number of samples (McGill, Tukey
and Larsen 1978)."""
_EVALUATIONS = ARTIFACTS / "evaluate"


def leaderboard() -> list[dict[str, Any]]:
    """The leaderboard rows written by the stage `compare`.

    Raises:
        InputError: There is no leaderboard, or it is damaged.
    """
    remedy = "Run `dvc repro`."
    try:
        rows: list[dict[str, Any]] = json_file.load(LEADERBOARD, _LARGEST, remedy=remedy)
    except MissingFileError:
        raise InputError(f"{LEADERBOARD} does not exist: run `dvc repro`.") from None
    json_file.validated(rows, _Rows, str(LEADERBOARD), remedy=remedy)
    return rows


def register() -> str:
    """Register the leaderboard's best student, if it is not yet, and give it the alias `challenger`.

    Returns:
        A one-line summary.

    Raises:
        InputError: There is no leaderboard, the engine or its evaluation is damaged or not the one that was measured,
            or MLflow cannot be reached.
    """
    config, store = open_store()
    row, teacher = best(config, leaderboard())
    engine = Path(row["artifact"])
    card = Card.verified(engine)
    if card.kind != "engine":
        why = f": it was refused by {card.refusal}" if card.refusal else ""
        raise InputError(f"{engine} holds a {card.kind}, which cannot be registered{why}. Run `dvc repro`.")
    if row.get("digest", card.digest) != card.digest:
        raise InputError(f"{engine} is not the engine that {LEADERBOARD} measured: run `dvc repro`.")
    evaluation = _evaluation(card)
    name, numbers = config.registered_model, _numbers(row, teacher, evaluation)
    results = instances.of_evaluation(evaluation, _fp32(card, evaluation))
    processor, runtime = str(row.get("processor") or ""), str(card.load.get("engine", ""))
    with registry.exclusive(store.uri, name):
        changes.settle(store.client, name)
        known = registry.version_with(store.client, name, card.digest)
        if known is None:
            subject = Subject(engine, card, numbers, processor, results, lineage.trace(store, engine))
            version = _register(config, store, subject)
        else:
            version, run = str(known.version), str(known.run_id)
            for metric, value in numbers.items():  # it may have been measured again since
                store.client.log_metric(run, metric, value)
            for key, text in (_measured_tags(store, run, processor, results) | {changes.RUNTIME: runtime}).items():
                store.client.set_model_version_tag(name, version, key, text)
        changes.set_challenger(store.client, name, version)
    done = "registered" if known is None else "already registered"
    return f"{row['model']} {row['precision']} is {done}: {name} version {version}, alias {CHALLENGER}"


def _evaluation(engine: Card) -> Path:
    """The evaluation of an engine.

    Raises:
        InputError: There is none.
    """
    directory = _EVALUATIONS / str(engine.model) / str(engine.precision)
    if engine.digest not in Card.read(directory).parents.values():
        raise InputError(f"{directory} is not the evaluation of the registered engine: run `dvc repro`.")
    return directory


def _numbers(row: Mapping[str, Any], teacher: Mapping[str, Any], evaluation: Path) -> dict[str, float]:
    """The metrics that the gate checks: the model's and its teacher's."""
    numbers = {name: float(row[name]) for name in (*_MEASURED, *TRIVIAL.values()) if row.get(name) is not None}
    numbers |= {f"teacher_{name}": float(teacher[name]) for name in _MEASURED if teacher.get(name) is not None}
    path = evaluation / "latency.json"
    timing = json_file.load(path, _LARGEST).get("end_to_end") if path.is_file() else None
    if timing and timing.get("samples"):
        numbers["latency_error_ms"] = _NOTCH * float(timing["spread_ms"]) / float(timing["samples"]) ** 0.5
    return numbers


def _register(config: PromoteConfig, store: Store, subject: Subject) -> str:
    """Log and register a new version with its metrics, its identity and what describes it."""
    card, origin = subject.card, subject.origin
    tags = {"digest": card.digest, "student": str(card.model), "precision": str(card.precision)}
    run = store.start("register", {"stage": "register", **tags})
    with TemporaryDirectory() as directory, registry.as_default(store.uri), mlflow.start_run(run_id=run):
        folder = Path(directory, "about")
        folder.mkdir()
        about.write(folder, subject)
        for file in (about.README, lineage.FILE):
            store.client.log_artifact(run, str(folder / file), lineage.FOLDER)
        tags |= _measured_tags(store, run, subject.processor, subject.results)
        tags |= {changes.RUNTIME: str(card.load.get("engine", "")), "license": about.LICENCE}
        tags |= {"data": lineage.digest_of(origin, "prepare"), "teacher": lineage.digest_of(origin, "teacher")}
        tags |= {"commit": str(origin["commit"])}
        made_by = {f"run/{entry['target']}": str(entry["run"]) for entry in origin["artifacts"] if "run" in entry}
        with registry.silenced():
            return registry.log_model(config.registered_model, subject.engine, subject.numbers, tags | made_by, folder)


def _measured_tags(store: Store, run: str, processor: str, results: Instances | None) -> dict[str, str]:
    """Log results per instance to a version's run; returns the tags by which the gate finds them."""
    tags = {"processor": processor}
    if results is not None:
        with TemporaryDirectory() as directory:
            path = Path(directory, instances.FILE)
            results.write(path)
            digest = file_sha256(path)
            store.client.log_artifact(run, str(path.rename(path.with_name(f"{digest}.parquet"))), INSTANCES)
        tags[INSTANCES] = digest
    return tags


def _fp32(engine: Card, evaluation: Path) -> Path | None:
    """The evaluation of the same student's fp32 engine on the same data; None if there is none."""
    if engine.precision == "fp32":
        return None
    directory = _EVALUATIONS / str(engine.model) / "fp32"
    built = ARTIFACTS / "build_engine" / str(engine.model) / "fp32"
    if not (directory / "card.json").is_file() or not (built / "card.json").is_file():
        return None
    card, fp32 = Card.read(directory), Card.read(built)
    same_student = fp32.digest in card.parents.values() and fp32.parents.get("align") == engine.parents.get("align")
    return directory if same_student and instances.same_data(Card.read(evaluation), card) else None
