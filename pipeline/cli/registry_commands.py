"""Commands on MLflow's registry; nothing heavy is imported before one runs."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Literal

import typer
from typer import Argument, Option

from pipeline.core import preflight
from pipeline.core.command_line import Json

_Registered = Annotated[str, Argument(metavar="MODEL", help="models:/NAME@ALIAS or models:/NAME/VERSION.")]
_CHAMPION = "models:/sam-distillery@champion"


def register() -> str:
    """Register the best model of the leaderboard as challenger."""
    preflight.check_registry()
    from pipeline import promote as commands

    return commands.register()


def promote(
    dry_run: Annotated[bool, Option("--dry-run", help="Only judge: change and record nothing.")] = False,
    force: Annotated[
        str | None, Option(metavar="REASON", help="Promote even if rules do not hold; the reason is recorded.")
    ] = None,
    target: Annotated[Literal["cpu", "gpu"] | None, Option(help="Of which target; default: the latest.")] = None,
) -> str:
    """Make the challenger champion if the rules in params.yaml hold; exit with 1 if one does not.

    The rules are limits, trivial masks, fp32 of the same student, and the champion of the same target on the same
    instances.

    Example: python -m pipeline promote --force "the old validation set had wrong labels"
    """
    preflight.check_registry()
    from pipeline import promote as commands
    from pipeline.core.errors import GateError
    from pipeline.promote import verdict

    decision = commands.decide(dry_run=dry_run, force=force, target=target)
    table = "" if decision.verdict is None else verdict.text(decision.verdict)
    if decision.refused:
        typer.echo(table)
        raise GateError(decision.line)
    return "\n".join(filter(None, [table, decision.line]))


def rollback(
    reason: Annotated[str, Option(help="Recorded.")] = "",
    target: Annotated[
        Literal["cpu", "gpu"] | None, Option(help="Of which target; default: that of the alias champion.")
    ] = None,
) -> str:
    """Make the previous champion champion again."""
    preflight.check_registry()
    from pipeline import promote as commands

    return commands.rollback(target=target, reason=reason)


def history(as_json: Json = False) -> str:
    """Print promotions and rollbacks, the latest first, with their outcomes and reasons."""
    preflight.check_registry()
    from pipeline import promote as commands

    entries = commands.history()
    if as_json:
        return json.dumps(entries, indent=1)
    columns = ("time", "action", "version", "replaced", "target", "outcome", "by", "reason")
    lines = [columns, *(tuple(entry[name] for name in columns) for entry in entries)]
    widths = [max(map(len, cells)) for cells in zip(*lines, strict=True)]
    text = ["  ".join(map(str.ljust, line, widths)).rstrip() for line in lines]
    return "\n".join(text) if entries else "there is no promotion: run `python -m pipeline promote`"


def lineage(model: _Registered = _CHAMPION, as_json: Json = False) -> str:
    """Print the way from a registered version to its commit, parameters, data and teacher.

    Example: python -m pipeline lineage models:/sam-distillery@champion
    """
    preflight.check_registry()
    from pipeline.promote import lineage as way

    content = way.lineage(model)
    return json.dumps(content, indent=1) if as_json else way.text(content)


def hf(
    directory: Annotated[Path, Argument(metavar="DIR", help="Folder to create.")],
    model: Annotated[str, Option(help="models:/NAME@ALIAS or models:/NAME/VERSION.")] = _CHAMPION,
) -> str:
    """Write a repository of the Hugging Face Hub: model card, engine, ONNX files, metrics, licence.

    Example: python -m pipeline publish hf published
    """
    preflight.check_registry()
    from pipeline.promote import publish

    return publish.hf(model, directory)


COMMANDS: Sequence[Callable[..., str]] = (register, promote, rollback, history, lineage)
