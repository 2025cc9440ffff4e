"""Acts on MLflow's registry: register the best model as challenger, make it champion, take that back."""

import contextlib
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow
from mlflow.entities.model_registry import ModelVersion

from pipeline.artifact import Card
from pipeline.config import read_params, section
from pipeline.errors import GateError, InputError
from pipeline.promote import registry
from pipeline.promote.gate import PromoteConfig, Rule, best, check
from pipeline.promote.registry import CHALLENGER, CHAMPION, PREVIOUS
from pipeline.stage import ARTIFACTS
from pipeline.tracking import Store

LEADERBOARD = ARTIFACTS / "compare" / "leaderboard.json"
_MEASURED = ("box_miou", "click_miou", "latency_ms", "size_mib", "memory_mib")

__all__ = ["LEADERBOARD", "PromoteConfig", "leaderboard", "promote", "register", "rollback"]


def leaderboard() -> list[dict[str, Any]]:
    """The rows that the stage `compare` left.

    Raises:
        InputError: There are none.
    """
    if not LEADERBOARD.is_file():
        raise InputError(f"{LEADERBOARD} does not exist: run `dvc repro`.")
    rows: list[dict[str, Any]] = json.loads(LEADERBOARD.read_text())
    return rows


def register() -> str:
    """Register the best student of the leaderboard, unless it is, and give it the alias `challenger`.

    Returns:
        What was done, in one line.

    Raises:
        InputError: There is no leaderboard, or the engine in place is not the one that was measured.
    """
    config, store = _open()
    row, teacher = best(config, leaderboard())
    engine = Path(row["artifact"])
    card = Card.read(engine)
    if card.kind != "engine":
        why = f": it was refused by {card.refusal}" if card.refusal else ""
        raise InputError(f"{engine} holds a {card.kind}, which cannot be registered{why}. Run `dvc repro`.")
    digest = card.digest
    if row.get("digest", digest) != digest:
        raise InputError(f"{engine} is not the engine that {LEADERBOARD} measured: run `dvc repro`.")
    known = registry.version_with(store.client, config.registered_model, digest)
    label = f"{row['model']} {row['precision']}"
    numbers = _numbers(row, teacher)
    if known is None:
        version = _register(config, store, engine, row, numbers)
    else:
        version = str(known.version)
        for name, value in numbers.items():  # it may have been measured anew since
            store.client.log_metric(str(known.run_id), name, value)
    store.client.set_registered_model_alias(config.registered_model, CHALLENGER, version)
    done = "registered" if known is None else "already registered"
    return f"{label} is {done}: {config.registered_model} version {version}, alias {CHALLENGER}"


def promote() -> str:
    """Make the challenger champion if the gate holds; the champion so far is kept as `previous`.

    Returns:
        What was done, in one line.

    Raises:
        GateError: A rule does not hold; the champion stays.
        InputError: There is no challenger.
    """
    config, store = _open()
    name = config.registered_model
    challenger = registry.version_of(store.client, name, CHALLENGER)
    if challenger is None:
        raise InputError(f"{name} has no version with alias {CHALLENGER}: run `python -m pipeline register`.")
    champion = registry.version_of(store.client, name, CHAMPION)
    if champion is not None and champion.version == challenger.version:
        return f"{name} version {champion.version} is champion already"
    rules = check(config, *_measured(store, challenger))
    _report(store, name, challenger, champion, rules)
    if not all(rule.holds for rule in rules):
        failed = "; ".join(str(rule) for rule in rules if not rule.holds)
        stays = f"version {champion.version} stays champion" if champion else "there is no champion yet"
        raise GateError(f"{name} version {challenger.version} does not pass the gate: {failed}; {stays}.")
    if champion is not None:
        store.client.set_model_version_tag(name, challenger.version, PREVIOUS, str(champion.version))
        store.client.set_registered_model_alias(name, PREVIOUS, str(champion.version))
    store.client.set_registered_model_alias(name, CHAMPION, str(challenger.version))
    kept = "; ".join(map(str, rules))
    return f"{name} version {challenger.version} is champion ({kept})"


def rollback() -> str:
    """Make the champion's predecessor champion again.

    Returns:
        What was done, in one line.

    Raises:
        InputError: There is no champion, or none before it.
    """
    config, store = _open()
    name, client = config.registered_model, store.client
    champion = registry.version_of(client, name, CHAMPION)
    if champion is None:
        raise InputError(f"{name} has no champion: run `python -m pipeline promote`.")
    previous = champion.tags.get(PREVIOUS)
    if previous is None:
        raise InputError(f"{name} version {champion.version} is the first champion: there is none to go back to.")
    client.set_registered_model_alias(name, CHAMPION, previous)
    client.delete_model_version_tag(name, champion.version, PREVIOUS)
    before = client.get_model_version(name, previous).tags.get(PREVIOUS)
    if before is None:
        client.delete_registered_model_alias(name, PREVIOUS)
    else:
        client.set_registered_model_alias(name, PREVIOUS, before)
    return f"{name} version {previous} is champion again, in place of version {champion.version}"


def _open() -> tuple[PromoteConfig, Store]:
    return section(read_params(), "promote", PromoteConfig), Store.open()


def _numbers(row: Mapping[str, Any], teacher: Mapping[str, Any]) -> dict[str, float]:
    """What the gate looks at: the model's measured values and its teacher's."""
    numbers = {name: float(row[name]) for name in _MEASURED if row.get(name) is not None}
    return numbers | {f"teacher_{name}": float(teacher[name]) for name in _MEASURED if teacher.get(name) is not None}


def _register(
    config: PromoteConfig, store: Store, engine: Path, row: Mapping[str, Any], numbers: Mapping[str, float]
) -> str:
    """Log and register a new version, tagged with what it is and linked to its numbers."""
    tags = {"digest": Card.read(engine).digest, "student": str(row["model"]), "precision": str(row["precision"])}
    run = store.start("register", {"stage": "register", **tags})
    with registry.as_default(store.uri), mlflow.start_run(run_id=run), _quietly():
        version = registry.log_model(config.registered_model, engine, numbers)
    for key, value in tags.items():
        store.client.set_model_version_tag(config.registered_model, version, key, value)
    return version


def _measured(store: Store, version: ModelVersion) -> tuple[dict[str, float], dict[str, float]]:
    """The numbers of a registered version and of the teacher it was measured against."""
    numbers = store.client.get_run(str(version.run_id)).data.metrics
    teacher = {k.removeprefix("teacher_"): v for k, v in numbers.items() if k.startswith("teacher_")}
    return {k: v for k, v in numbers.items() if not k.startswith("teacher_")}, teacher


def _report(
    store: Store, name: str, challenger: ModelVersion, champion: ModelVersion | None, rules: Sequence[Rule]
) -> None:
    """Keep the gate's verdict in MLflow."""
    passed = all(rule.holds for rule in rules)
    verdict = {
        "model": name,
        "challenger": str(challenger.version),
        "champion": str(champion.version) if champion else None,
        "passed": passed,
        "rules": [
            {"name": r.name, "value": r.value, "limit": r.limit, "holds": r.holds, "says": str(r)} for r in rules
        ],
    }
    tags = {"passed": str(passed).lower(), "digest": challenger.tags.get("digest", "")}
    run = store.start("promote", {"stage": "promote", **tags})
    store.client.log_dict(run, verdict, "gate.json")
    for rule in rules:
        if rule.value is not None:
            store.client.log_metric(run, rule.name, rule.value)
    store.client.set_terminated(run)


@contextlib.contextmanager
def _quietly() -> Iterator[None]:
    """Keep what MLflow says about type hints and pickles out of a person's terminal."""
    logger = logging.getLogger("mlflow")
    level = logger.level
    logger.setLevel(logging.ERROR)
    shown = os.environ.get("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR")
    os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = "false"
    try:
        yield
    finally:
        logger.setLevel(level)
        if shown is None:
            del os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"]
        else:
            os.environ["MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR"] = shown
