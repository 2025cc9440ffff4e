"""Commands on MLflow's registry: register the best model as challenger, promote it to champion, roll back."""

import contextlib
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import mlflow
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from pydantic import BaseModel, ConfigDict, Field, JsonValue

from pipeline.core.artifact import Card
from pipeline.core.config import read_params, section
from pipeline.core.errors import GateError, InputError
from pipeline.core.stage import ARTIFACTS
from pipeline.core.untrusted import json_file
from pipeline.core.untrusted.regular_file import MissingFileError
from pipeline.ops.gate import PromoteConfig, Rule, best, check
from pipeline.ops.metrics import TRIVIAL
from pipeline.promote import registry
from pipeline.promote.registry import CHALLENGER, CHAMPION, PREVIOUS
from pipeline.tracking import Curves, Store, running

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

__all__ = ["LEADERBOARD", "PromoteConfig", "leaderboard", "promote", "register", "rollback"]


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
        InputError: There is no leaderboard, the engine is damaged or not the one that was measured, or MLflow cannot be
            reached.
    """
    config, store = _open()
    row, teacher = best(config, leaderboard())
    engine = Path(row["artifact"])
    card = Card.verified(engine)
    if card.kind != "engine":
        why = f": it was refused by {card.refusal}" if card.refusal else ""
        raise InputError(f"{engine} holds a {card.kind}, which cannot be registered{why}. Run `dvc repro`.")
    digest = card.digest
    if row.get("digest", digest) != digest:
        raise InputError(f"{engine} is not the engine that {LEADERBOARD} measured: run `dvc repro`.")
    label = f"{row['model']} {row['precision']}"
    numbers = _numbers(row, teacher)
    with registry.exclusive(store.uri, config.registered_model):
        known = registry.version_with(store.client, config.registered_model, digest)
        if known is None:
            version = _register(config, store, engine, row, numbers)
        else:
            version = str(known.version)
            for name, value in numbers.items():  # it may have been measured again since
                store.client.log_metric(str(known.run_id), name, value)
        store.client.set_registered_model_alias(config.registered_model, CHALLENGER, version)
    done = "registered" if known is None else "already registered"
    return f"{label} is {done}: {config.registered_model} version {version}, alias {CHALLENGER}"


def promote() -> str:
    """Make the challenger champion if it passes the gate; the old champion gets the alias `previous`.

    Returns:
        A one-line summary.

    Raises:
        GateError: A rule does not hold; the champion stays.
        InputError: There is no challenger, another machine moved the champion meanwhile, or MLflow cannot be reached.
    """
    config, store = _open()
    name = config.registered_model
    with registry.exclusive(store.uri, name):
        challenger = registry.version_of(store.client, name, CHALLENGER)
        if challenger is None:
            raise InputError(f"{name} has no version with alias {CHALLENGER}: run `python -m pipeline register`.")
        champion = registry.version_of(store.client, name, CHAMPION)
        if champion is not None and champion.version == challenger.version:
            return f"{name} version {champion.version} is already champion"
        rules = check(config, *_measured(store, challenger))
        passed = all(rule.holds for rule in rules)
        tags = {"passed": str(passed).lower(), "digest": challenger.tags.get("digest", "")}
        with running(store, "promote", {"stage": "promote", **tags}) as curves:
            _report(curves, name, challenger, champion, rules)
            if passed:
                _set_champion(store.client, name, challenger, champion)
    if not passed:
        failed = "; ".join(str(rule) for rule in rules if not rule.holds)
        stays = f"version {champion.version} stays champion" if champion else "there is no champion yet"
        raise GateError(f"{name} version {challenger.version} does not pass the gate: {failed}; {stays}.")
    passed_rules = "; ".join(map(str, rules))
    return f"{name} version {challenger.version} is champion ({passed_rules})"


def rollback() -> str:
    """Make the champion's predecessor champion again.

    Returns:
        A one-line summary.

    Raises:
        InputError: There is no champion or no predecessor, another machine moved the champion meanwhile, or MLflow
            cannot be reached.
    """
    config, store = _open()
    name, client = config.registered_model, store.client
    with registry.exclusive(store.uri, name):
        champion = registry.version_of(client, name, CHAMPION)
        if champion is None:
            raise InputError(f"{name} has no champion: run `python -m pipeline promote`.")
        previous = champion.tags.get(PREVIOUS)
        if previous is None:
            raise InputError(f"{name} version {champion.version} is the first champion: there is none to go back to.")
        again = client.get_model_version(name, previous)
        tags = {"version": previous, "replaced": str(champion.version), "digest": again.tags.get("digest", "")}
        with running(store, "rollback", {"stage": "rollback", "registered_model": name, **tags}):
            if before := again.tags.get(PREVIOUS):
                client.set_registered_model_alias(name, PREVIOUS, before)
            else:
                client.delete_registered_model_alias(name, PREVIOUS)
            # The last step that may fail, so that a failed rollback can be repeated without going back twice. A
            # leftover tag is overwritten when its version is promoted again.
            registry.move(client, name, CHAMPION, str(champion.version), previous)
            with contextlib.suppress(MlflowException):
                client.delete_model_version_tag(name, champion.version, PREVIOUS)
    return f"{name} version {previous} is champion again, replacing version {champion.version}"


def _open() -> tuple[PromoteConfig, Store]:
    return section(read_params(), "promote", PromoteConfig), Store.open()


def _numbers(row: Mapping[str, Any], teacher: Mapping[str, Any]) -> dict[str, float]:
    """The metrics that the gate checks: the model's and its teacher's."""
    numbers = {name: float(row[name]) for name in (*_MEASURED, *TRIVIAL.values()) if row.get(name) is not None}
    return numbers | {f"teacher_{name}": float(teacher[name]) for name in _MEASURED if teacher.get(name) is not None}


def _register(
    config: PromoteConfig, store: Store, engine: Path, row: Mapping[str, Any], numbers: Mapping[str, float]
) -> str:
    """Log and register a new version with identifying tags and its metrics."""
    tags = {"digest": Card.read(engine).digest, "student": str(row["model"]), "precision": str(row["precision"])}
    run = store.start("register", {"stage": "register", **tags})
    with registry.as_default(store.uri), mlflow.start_run(run_id=run), _mlflow_silenced():
        version = registry.log_model(config.registered_model, engine, numbers)
    for key, value in tags.items():
        store.client.set_model_version_tag(config.registered_model, version, key, value)
    return version


def _measured(store: Store, version: ModelVersion) -> tuple[dict[str, float], dict[str, float]]:
    """The metrics of a registered version and of the teacher it was measured against."""
    numbers = store.client.get_run(str(version.run_id)).data.metrics
    teacher = {k.removeprefix("teacher_"): v for k, v in numbers.items() if k.startswith("teacher_")}
    return {k: v for k, v in numbers.items() if not k.startswith("teacher_")}, teacher


def _set_champion(client: MlflowClient, name: str, challenger: ModelVersion, champion: ModelVersion | None) -> None:
    """Make the challenger champion. Rollback uses the tag; the alias ``previous`` is informational."""
    version, old = str(challenger.version), str(champion.version) if champion else None
    if old is not None:
        client.set_model_version_tag(name, version, PREVIOUS, old)
    registry.move(client, name, CHAMPION, old, version)
    if old is not None:
        client.set_registered_model_alias(name, PREVIOUS, old)


def _report(
    curves: Curves, name: str, challenger: ModelVersion, champion: ModelVersion | None, rules: Sequence[Rule]
) -> None:
    """Log the gate's verdict to MLflow."""
    verdict = {
        "model": name,
        "challenger": str(challenger.version),
        "champion": str(champion.version) if champion else None,
        "passed": all(rule.holds for rule in rules),
        "rules": [
            {"name": r.name, "value": r.value, "limit": r.limit, "holds": r.holds, "says": str(r)} for r in rules
        ],
    }
    curves.store.client.log_dict(curves.run, verdict, "gate.json")
    curves({rule.name: rule.value for rule in rules if rule.value is not None})


@contextlib.contextmanager
def _mlflow_silenced() -> Iterator[None]:
    """Suppress MLflow's warnings about type hints and pickles, and its progress bars."""
    logger = logging.getLogger("mlflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    progress_bar = os.environ.get("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR")
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    try:
        yield
    finally:
        logger.setLevel(level)
        if progress_bar is None:
            del os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"]
        else:
            os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = progress_bar
