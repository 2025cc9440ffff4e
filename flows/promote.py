"""Promotion as a Prefect flow, so that it can be scheduled and monitored."""

import sys
from collections.abc import Callable, Mapping

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from flows import console
from pipeline import promote as commands
from pipeline.core.errors import GateError, InputError
from pipeline.core.failures import guarded
from pipeline.core.preflight import check_prefect, check_registry

_ENDS: Mapping[str, int] = {"Refused": 1, "BadInput": 2}
"""Names of the flow's failed states, and their exit codes."""


def _outcome(command: Callable[[], str]) -> tuple[str, str]:
    """State name and message of a command. Refusals are returned, not raised, so that Prefect logs no traceback."""
    try:
        return "Completed", command()
    except GateError as refusal:
        return "Refused", str(refusal)
    except InputError as error:
        return "BadInput", str(error)


@task(cache_policy=NO_CACHE)
def register() -> tuple[str, str]:
    """Register the best model as challenger; returns state name and message."""
    return _outcome(commands.register)


@task(cache_policy=NO_CACHE)
def gate() -> tuple[str, str]:
    """Make the challenger champion if the rules in params.yaml hold; returns state name and message."""
    return _outcome(commands.promote)


@flow
def promote() -> State[str]:
    """Register the best model of the leaderboard and make it champion if it passes the gate.

    Returns:
        Completed, or a failed state named Refused (a rule does not hold, the champion stays) or BadInput. The message
        says what was done or why not.
    """
    end, line = register()
    if end == "Completed":
        end, line = gate()
    return Completed(message=line, data=line) if end == "Completed" else Failed(name=end, message=line)


def main() -> int:
    """Run the flow and print its outcome."""
    return guarded(_run, "the flow")


def _run() -> int:
    check_registry()
    check_prefect()
    with console.quiet("promote"):
        state = promote(return_state=True)
    if state.name and state.name in _ENDS:
        print(f"error: {state.message}", file=sys.stderr)
        return _ENDS[state.name]
    print(state.result())
    return 0


if __name__ == "__main__":
    sys.exit(main())
