"""Move the champion when the gate holds, as a flow, so that it can be scheduled and seen."""

import sys

from prefect import flow, task
from prefect.cache_policies import NO_CACHE

from pipeline import promote as acts
from pipeline.errors import GateError, InputError


@task(cache_policy=NO_CACHE)
def register() -> str:
    """Register the best model as challenger."""
    return acts.register()


@task(cache_policy=NO_CACHE)
def gate() -> str:
    """Make the challenger champion if the rules in params.yaml hold."""
    return acts.promote()


@flow
def promote() -> str:
    """Register the best model of the leaderboard and make it champion if the gate holds.

    Raises:
        GateError: A rule does not hold; the champion stays.
    """
    register()
    return gate()


def main() -> int:
    """Run the flow and say what came out."""
    try:
        print(promote())
    except (GateError, InputError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1 if isinstance(error, GateError) else 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
