"""The way from a registered version back to its commit, parameters, data and teacher.

It is written when a version is registered, from the cards of the artifacts it was made from and their MLflow runs, and
logged with the version, so that it does not depend on artifacts that are replaced later.
"""

import json
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from pipeline.core import provenance
from pipeline.core.artifact import CARD, Card
from pipeline.core.config import read_params
from pipeline.core.errors import InputError
from pipeline.core.stage import ARTIFACTS, DRAFTS
from pipeline.promote import registry
from pipeline.promote.download import named
from pipeline.tracking import Store

FILE = "lineage.json"
FOLDER = "about"
"""Folder of the registering run with the version's lineage and model card."""
_WIDTH = 110
_SHORT = 12


def trace(store: Store, engine: Path) -> dict[str, Any]:
    """The artifacts that an engine was made from, each with its run, commit and parameters.

    Returns:
        ``commit`` and ``dirty`` of the registering checkout, and ``artifacts``, upstream first: ``target``,
        ``directory``, ``kind``, ``model``, ``digest``, ``parents``, ``params`` and, if MLflow has its run, ``run``,
        ``commit`` and ``dirty``.
    """
    by_digest = {card.digest: path for path, card in _cards()}
    order = dict[Path, Card]()
    _visit(engine, by_digest, order)
    commit = provenance.git()
    return {
        "commit": commit.get("git.commit", ""),
        "dirty": commit.get("git.dirty") == "true",
        "artifacts": [_entry(store, path, card) for path, card in order.items()],
    }


def lineage(model: str) -> dict[str, Any]:
    """The lineage of a registered version.

    Args:
        model: ``models:/NAME@ALIAS`` or ``models:/NAME/VERSION``.

    Returns:
        What `trace` returned when it was registered, and ``model``, ``version``, ``aliases``, ``registering_run``,
        ``digest``, ``student``, ``precision``, ``data`` and ``teacher`` (digests).

    Raises:
        InputError: There is no such version, it has no lineage, or MLflow cannot be reached.
    """
    store, version = named(model)
    try:
        with registry.silenced():
            path = store.client.download_artifacts(str(version.run_id), f"{FOLDER}/{FILE}")
        content: dict[str, Any] = json.loads(Path(path).read_text())
        aliases = store.client.get_registered_model(version.name).aliases
    except (MlflowException, OSError, ValueError) as error:
        raise InputError(
            f"{model} has no lineage that can be read ({str(error).splitlines()[0]}): versions that this release "
            "registers have one."
        ) from error
    return _heading(version, aliases) | content


def text(content: Mapping[str, Any]) -> str:
    """A lineage for a terminal."""
    aliases = f" ({', '.join(content['aliases'])})" if content["aliases"] else ""
    made = "commit " + (content["commit"] or "unknown") + (", with uncommitted changes" if content["dirty"] else "")
    lines = [
        f"{content['model']} version {content['version']}{aliases}: {content['student']} {content['precision']}",
        f"registered  {made}; run {content['registering_run']}",
        f"data        {content['data'] or 'unknown'}",
        f"teacher     {content['teacher'] or 'unknown'}",
    ]
    for entry in content["artifacts"]:
        commit = f"commit {entry['commit'][:_SHORT]}" if entry.get("commit") else "commit unknown"
        dirty = " with changes" if entry.get("dirty") else ""
        run = f"run {entry['run']}" if entry.get("run") else "no run"
        lines.append(f"{entry['target']:<40} {entry['digest'][:_SHORT]}  {commit}{dirty}  {run}")
        params = " ".join(f"{key}={value}" for key, value in sorted(entry.get("params", {}).items()))
        lines += textwrap.wrap(params, _WIDTH, initial_indent="    ", subsequent_indent="    ", break_on_hyphens=False)
    return "\n".join(lines)


def digest_of(content: Mapping[str, Any], stage: str) -> str:
    """Digest of the artifact of a stage that a lineage's artifacts were made from; empty if they were not."""
    return next((str(e["parents"][stage]) for e in content["artifacts"] if stage in e["parents"]), "")


def _heading(version: ModelVersion, aliases: Mapping[str, object]) -> dict[str, Any]:
    names = ("digest", "student", "precision", "data", "teacher")
    return {
        "model": version.name,
        "version": str(version.version),
        "aliases": sorted(alias for alias, of in aliases.items() if str(of) == str(version.version)),
        "registering_run": str(version.run_id),
        **{name: version.tags.get(name, "") for name in names},
    }


def _cards() -> Iterator[tuple[Path, Card]]:
    for path in sorted(ARTIFACTS.rglob(CARD)):
        if not path.is_relative_to(DRAFTS):
            with suppress(InputError):  # of another release
                yield path.parent, Card.read(path.parent)


def _visit(directory: Path, by_digest: Mapping[str, Path], order: dict[Path, Card]) -> None:
    """Add an artifact after those it was made from."""
    card = Card.read(directory)
    for digest in card.parents.values():
        parent = by_digest.get(digest)
        if parent is not None and parent not in order:
            _visit(parent, by_digest, order)
    order[directory] = card


def _entry(store: Store, directory: Path, card: Card) -> dict[str, Any]:
    stage, *keys = directory.relative_to(ARTIFACTS).parts
    target = "@".join(filter(None, (stage, "-".join(keys))))
    entry: dict[str, Any] = {
        "target": target,
        "directory": directory.as_posix(),
        "kind": card.kind,
        "model": card.model,
        "digest": card.digest,
        "parents": card.parents,
    }
    run = store.find(target, card.digest)
    if run is None:
        return entry | {"params": _section(stage, keys)}
    data = store.client.get_run(run).data
    made = {"commit": data.tags.get("git.commit", ""), "dirty": data.tags.get("git.dirty") == "true"}
    return entry | {"run": run, **made, "params": dict(data.params)}


def _section(stage: str, keys: Sequence[str]) -> dict[str, Any]:
    """A stage's section of params.yaml, for artifacts without a run."""
    section = read_params().get(stage)
    if isinstance(section, Mapping) and keys and isinstance(section.get(keys[0]), Mapping):
        section = section[keys[0]]
    return dict(section) if isinstance(section, Mapping) else {}
