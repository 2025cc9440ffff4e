"""The files of DVC: dvc.yaml as the stages declare it, and what dvc.lock records."""

from typing import Any

import yaml

from pipeline.core.artifact import METRICS
from pipeline.core.stage import DVC_LOCK, Stage


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
