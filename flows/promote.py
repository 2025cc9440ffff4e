"""Promotion as a Prefect flow, so that it can be scheduled and monitored, and starts what listens to its event."""

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Literal

import typer
from prefect import flow, task
from prefect.artifacts import create_table_artifact
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.events import emit_event
from prefect.states import Completed, Failed

from flows import console, temporary_server
from pipeline import promote as commands
from pipeline.core import command_line
from pipeline.core.command_line import DEBUG_OPTION, PLAIN
from pipeline.core.errors import InputError
from pipeline.core.failures import guarded
from pipeline.core.preflight import check_prefect, check_registry
from pipeline.promote import Decision, verdict
from pipeline.promote.changes import Change

EVENT = "sam-distillery.champion.changed"
"""Prefect's event after a promotion or a rollback; its payload is the change."""
_ENDS: Mapping[str, int] = {"Refused": 1, "BadInput": 2}
"""Names of the flow's failed states, and their exit codes."""
_Target = Literal["cpu", "gpu"]


def _outcome(command: Callable[[], Decision]) -> tuple[str, str]:
    """State name and message of a command. Refusals are returned, not raised, so that Prefect logs no traceback."""
    try:
        decision = command()
    except InputError as error:
        return "BadInput", str(error)
    table = ""
    if decision.verdict is not None:
        create_table_artifact(key="gate", table=verdict.rows(decision.verdict), description=decision.line)
        table = verdict.text(decision.verdict) + "\n"
    if decision.changed is not None:
        _emit(decision.model, decision.changed)
    return ("Refused", decision.line) if decision.refused else ("Completed", f"{table}{decision.line}")


def _emit(model: str, change: Change) -> None:
    """Emit the event of a change."""
    resource = {"prefect.resource.id": f"sam-distillery.model.{model}", "prefect.resource.name": model}
    payload = {"model": model, "action": change.action, "target": change.target, "old": change.old, "new": change.new}
    emit_event(EVENT, resource, payload=payload | {"run": change.run})


@task(cache_policy=NO_CACHE)
def register() -> tuple[str, str]:
    """Register the best model as challenger; returns state name and message."""
    return _outcome(lambda: Decision(commands.register()))


@task(cache_policy=NO_CACHE)
def gate(dry_run: bool = False, force: str | None = None, target: _Target | None = None) -> tuple[str, str]:
    """Make the challenger champion if the rules in params.yaml hold; returns state name and message."""
    return _outcome(lambda: commands.decide(dry_run=dry_run, force=force, target=target))


@task(cache_policy=NO_CACHE)
def go_back(target: _Target | None = None, reason: str = "") -> tuple[str, str]:
    """Make the previous champion champion again; returns state name and message."""
    return _outcome(lambda: commands.go_back(target=target, reason=reason))


@flow
def promote(dry_run: bool = False, force: str | None = None, target: _Target | None = None) -> State[str]:
    """Register the best model of the leaderboard and make it champion if it passes the gate.

    Args:
        dry_run: Only judge the challenger; the champion stays, and nothing is recorded.
        force: Why the challenger becomes champion even if rules do not hold; recorded.
        target: Of which target, ``cpu`` or ``gpu``; None for the latest challenger.

    Returns:
        Completed, or a failed state named Refused (a rule does not hold, the champion stays) or BadInput. The message
        says what was done or why not. The verdict is the table artifact ``gate``.
    """
    end, line = register()
    if end == "Completed":
        end, line = gate(dry_run, force, target)
    return _state(end, line)


@flow
def rollback(target: _Target | None = None, reason: str = "") -> State[str]:
    """Make the previous champion champion again.

    Args:
        target: Of which target, ``cpu`` or ``gpu``; None for that of the alias ``champion``.
        reason: Recorded.

    Returns:
        Completed, or a failed state named BadInput.
    """
    return _state(*go_back(target, reason))


def _state(end: str, line: str) -> State[str]:
    return Completed(message=line, data=line) if end == "Completed" else Failed(name=end, message=line)


app = typer.Typer(**PLAIN)


@app.command()
def _command(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only judge: the champion stays.")] = False,
    force: Annotated[
        str | None, typer.Option(metavar="REASON", help="Promote even if rules do not hold; the reason is recorded.")
    ] = None,
    target: Annotated[_Target | None, typer.Option(help="Of which target; default: the latest.")] = None,
    back: Annotated[bool, typer.Option("--rollback", help="Go back to the previous champion instead.")] = False,
    debug: Annotated[bool, DEBUG_OPTION] = False,
) -> int:
    """Register the leaderboard's best model and promote it, as a Prefect flow."""

    def run() -> int:
        check_registry()
        check_prefect()
        temporary_server.end_with_this_process()
        with console.quiet("promote"):
            state = rollback(target, return_state=True) if back else promote(dry_run, force, target, return_state=True)
        if state.name and state.name in _ENDS:
            print(f"error: {state.message}", file=sys.stderr)
            return _ENDS[state.name]
        print(state.result())
        return 0

    return guarded(run, "the flow")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the flow and print its outcome."""
    return command_line.run(app, arguments, "python -m flows.promote")


if __name__ == "__main__":
    sys.exit(main())
