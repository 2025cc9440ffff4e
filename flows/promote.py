"""Move the champion when the gate holds, as a flow, so that it can be scheduled and seen."""

import sys
from collections.abc import Callable, Mapping

from prefect import flow, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.states import Completed, Failed

from pipeline import promote as acts
from pipeline.core.errors import GateError, InputError

_ENDS: Mapping[str, int] = {"Refused": 1, "BadInput": 2}
"""How a flow run can end beside Prefect's own ways, as the name of its state; the exit code for each."""


def _answer(act: Callable[[], str]) -> tuple[str, str]:
    """How an act ended, and its line. A refusal is what it found out, not a fault: Prefect shows no traceback."""
    try:
        return "Completed", act()
    except GateError as refusal:
        return "Refused", str(refusal)
    except InputError as error:
        return "BadInput", str(error)


@task(cache_policy=NO_CACHE)
def register() -> tuple[str, str]:
    """Register the best model as challenger; how that ended, and what to tell."""
    return _answer(acts.register)


@task(cache_policy=NO_CACHE)
def gate() -> tuple[str, str]:
    """Make the challenger champion if the rules in params.yaml hold; how that ended, and what to tell."""
    return _answer(acts.promote)


@flow
def promote() -> State[str]:
    """Register the best model of the leaderboard and make it champion if the gate holds.

    Returns:
        Completed; or failed by the name of Refused where a rule does not hold, and the champion stays, or of BadInput.
        The message tells what was done or why not.
    """
    end, line = register()
    if end == "Completed":
        end, line = gate()
    return Completed(message=line, data=line) if end == "Completed" else Failed(name=end, message=line)


def main() -> int:
    """Run the flow and say what came out."""
    state = promote(return_state=True)
    if state.name and state.name in _ENDS:
        print(f"error: {state.message}", file=sys.stderr)
        return _ENDS[state.name]
    print(state.result())
    return 0


if __name__ == "__main__":
    sys.exit(main())
