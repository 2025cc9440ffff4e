"""The command of each stage, as DVC and people call it: ``python -m pipeline distill --student tinysam``."""

import inspect
import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from typer import Option

from pipeline.core import preflight, process
from pipeline.core.artifact import Card, read_refusals
from pipeline.core.command_line import Json
from pipeline.core.config import read_params
from pipeline.core.dvc_files import has_cached_result
from pipeline.core.errors import InputError
from pipeline.core.failures import OK, REFUSED, guarded
from pipeline.core.log import silent
from pipeline.core.stage import RESTORE_ONLY, Keys, Stage, refuse_unknown_sections
from pipeline.stages import STAGES

WITHOUT = ("pandas", "pyarrow", "sklearn")
"""Packages MLflow imports where they are installed; a stage's record needs none of them, as with mlflow-skinny."""


def command_of(stage: Stage) -> Callable[..., int]:
    """The command of a stage, with one option for each key of its matrix; it returns the exit code."""

    def run(*, as_json: bool, **keys: str) -> int:
        hint = partial(_hint, stage, stage.target(keys))
        return guarded(lambda: _run_stage(stage, keys, as_json), stage.target(keys), hint)

    options = [
        inspect.Parameter(
            key,
            inspect.Parameter.KEYWORD_ONLY,
            annotation=Annotated[
                str, Option(help=f"One of `{key}s` in params.yaml.", autocompletion=_completion(f"{key}s"))
            ],
        )
        for key in stage.matrix
    ]
    shown = inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=Json)
    run.__signature__ = inspect.Signature([*options, shown])  # type: ignore[attr-defined]
    return run


def help_of(stage: Stage) -> str:
    """What a stage does, reads and writes."""
    reads = ", ".join(str(dep.path({})) for dep in stage.deps) or "nothing of other stages"
    names = {key: key.upper() for key in stage.matrix}
    section = (stage.section or stage.name).format(**names)
    return f"{stage.summary}.\n\nReads {reads} and section {section} of params.yaml; writes {stage.path(names)}."


def _run_stage(stage: Stage, keys: Keys, as_json: bool) -> int:
    """Run one repetition of a stage, recorded in MLflow, and print what it left."""
    if os.environ.get(RESTORE_ONLY):
        raise InputError(
            f"the result of {stage.target(keys)} did not come back from the worker: code or parameters changed "
            "while it ran, or DVC's remote lost it. Run the release again."
        )
    preflight.check_encoding()
    params = read_params()
    refuse_unknown_sections(STAGES, params)
    with process.starting():
        config = stage.config(params, keys)  # before MLflow is imported: a spelling mistake is reported at once
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and not stage.distributed:
        raise InputError(f"{stage.name} runs in one process: start it without torchrun.")
    if int(os.environ.get("RANK", "0")) > 0:
        stage.follow(config, keys, silent)
        return OK
    preflight.check_stage()
    with process.starting(), process.without(WITHOUT):
        from pipeline.tracking import PARENT_RUN, run_tracked

    card, directory = run_tracked(stage, params, keys), stage.path(keys)
    if as_json:
        typer.echo(json.dumps({"directory": str(directory), **card.model_dump(mode="json")}, indent=1))
    else:
        board = () if PARENT_RUN in os.environ else _leaderboard(directory, card)  # the flow prints its own
        done = f"{directory}: {card.kind}, digest {card.digest[:12]}"
        typer.echo("\n".join([done, *board, *_refusals(directory, card)]))
    return REFUSED if card.refusal and "DVC_STAGE" not in os.environ else OK


def _leaderboard(directory: Path, card: Card) -> Iterator[str]:
    """The leaderboard of a comparison, with which `dvc repro` ends, and where the report is."""
    if card.kind == "comparison":
        from pipeline.compare.table import leaderboard_text  # imports plotting libraries

        rows = json.loads((directory / "leaderboard.json").read_text())
        yield f"\n{leaderboard_text(rows, read_refusals(directory))}\n"
        yield f"report: {directory / 'report.html'}"


def _refusals(directory: Path, card: Card) -> Iterator[str]:
    """Whether this candidate is refused, or which candidates a comparison goes without."""
    if card.refusal:
        yield f"refused by {card.refusal}. {card.refusal.reason}"
    elif refusals := read_refusals(directory):
        yield f"refused: {'; '.join(f'{name} ({refusal})' for name, refusal in refusals.items())}"


def _completion(key: str) -> Callable[[], list[str]]:
    """Shell completion from a list of params.yaml."""

    def values() -> list[str]:
        try:
            return [str(value) for value in read_params().get(key, [])]
        except InputError:
            return []

    return values


def _hint(stage: Stage, target: str) -> str:
    """Where the earlier result is that DVC removed before it started the stage."""
    if "DVC_STAGE" in os.environ and has_cached_result(target):
        return f" The earlier result is in DVC's cache: `dvc checkout {target}` restores it."
    return ""
