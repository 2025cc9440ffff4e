"""The files of DVC: dvc.yaml as the stages declare it, and what dvc.lock records."""

import fcntl
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from pipeline.core import atomic
from pipeline.core.artifact import METRICS
from pipeline.core.progress import notice
from pipeline.core.stage import DVC_LOCK, Stage

_REPOSITORY_LOCK = Path(".dvc/tmp/lock")
"""Held by each DVC command while it reads or writes its files, but not while a stage runs."""
_HEAD = "schema: '2.0'\nstages:\n"
"""Text before the first entry of dvc.lock."""
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def dvc_yaml(stages: tuple[Stage, ...]) -> str:
    """The text of dvc.yaml."""
    top: dict[str, Any] = {"stages": {stage.name: stage.to_dvc() for stage in stages}}
    # DVC expands a matrix for stages, but not for metrics; the comparison has the metrics of all repetitions.
    metrics = [str(stage.path({}) / METRICS) for stage in stages if not stage.cached and not stage.matrix]
    plots = [plot for stage in stages for plot in _dvc_plots(stage)]
    top |= ({"metrics": metrics} if metrics else {}) | ({"plots": plots} if plots else {})
    return "# Written by `make dvc.yaml`. Edit pipeline/stages.py instead.\n" + yaml.safe_dump(
        top, sort_keys=False, width=120
    )


def _dvc_plots(stage: Stage) -> list[str | dict[str, Any]]:
    """A stage's plots in dvc.yaml."""
    source = str(stage.path({}) / "plots.json")
    plots: list[str | dict[str, Any]] = [
        {title: {"x": {source: x}, "y": {source: y}, "template": template}}
        for title, (x, y, template) in stage.plots.items()
    ]
    return [*plots, str(stage.path({}) / "plots")] if plots else []


def has_cached_result(target: str) -> bool:
    """Whether dvc.lock has an earlier result of ``target``, which `dvc checkout` can restore."""
    if not DVC_LOCK.is_file():
        return False
    try:
        entry = (yaml.safe_load(DVC_LOCK.read_text()) or {}).get("stages", {}).get(target, {})
        return any("hash" in out or "md5" in out for out in entry.get("outs", []))
    except (yaml.YAMLError, UnicodeDecodeError, AttributeError, TypeError):  # DVC reports a broken file
        return False


@contextmanager
def repository_lock() -> Iterator[None]:
    """Hold DVC's repository lock, in the same way as DVC's zc.lockfile; waits until it is free."""
    _REPOSITORY_LOCK.parent.mkdir(parents=True, exist_ok=True)
    with _REPOSITORY_LOCK.open("a") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def repair_lock() -> None:
    """Remove the unfinished last entry from a dvc.lock whose writer was killed.

    DVC does not write the file atomically, and refuses to start with an incomplete one. The entries that are lost come
    back from its run cache. Files that are broken otherwise are left alone.
    """
    if not DVC_LOCK.is_file() or not Path(".dvc").is_dir():
        return
    with repository_lock():
        try:
            text = DVC_LOCK.read_text()
        except UnicodeDecodeError:
            return
        complete = complete_part(text)
        if complete is None or complete == text:
            return
        with atomic.replacing(DVC_LOCK) as draft:
            draft.write_text(complete)
    notice(f"{DVC_LOCK} was cut off when its writer was killed: DVC's run cache completes it.")


def complete_part(text: str) -> str | None:
    """The complete entries of dvc.lock: all of ``text``, or all but the last if it is cut off.

    Returns:
        The entries' text; None if ``text`` is broken otherwise.
    """
    if _is_complete(text):
        return text
    head, *entries = re.split(r"^(?=  \S)", text, flags=re.MULTILINE)
    if not _HEAD.startswith(head.rstrip(" ")):
        return None
    complete = head + "".join(entries[:-1]) if len(entries) > 1 else ""
    return complete if _is_complete(complete) else None


def _is_complete(text: str) -> bool:
    """Whether a text is YAML, ends with a line's end, and has nothing after whose key the file was cut off."""
    try:
        content = yaml.load(text, _LOADER)
    except (yaml.YAMLError, RecursionError):
        return False
    return (text.endswith("\n") or not text) and (content is None or None not in _values(content))


def _values(node: Any) -> Iterator[Any]:
    """Values of the entries of dvc.lock down to the lists and mappings of files and parameters, without these' own."""
    for entry in (node.get("stages") or {}).values() if isinstance(node, dict) else ():
        yield entry
        for section in (entry or {}).values() if isinstance(entry, dict) else ():
            yield section
            yield from section.values() if isinstance(section, dict) else ()
