"""What a release came to: which stages failed and which candidates were refused, in lines for a person."""

from collections.abc import Mapping, Sequence
from typing import Any

from prefect.client.schemas.objects import State

from flows import dvc, tasks
from flows.schedule import Step
from pipeline.core.artifact import CARD, Card

States = Mapping[str, State[Any] | None]
"""Of all steps of a release by target, how they ended; None for those that were not run."""


class ReleaseFailedError(dvc.StageFailedError):
    """Stages failed; its text has a line for each, and one for what was not run.

    Attributes:
        bad_input: Whether one of them refused its input that all students share.
        rows: The leaderboard of what there is, None where nothing was compared.
        refused: The candidates that gates refused, as `refused` tells them.
    """

    def __init__(
        self, lines: Sequence[str], *, bad_input: bool, rows: list[dict[str, Any]] | None, refused: str
    ) -> None:
        super().__init__("\n".join(lines))
        self.bad_input, self.rows, self.refused = bad_input, rows, refused


def has_result(state: State[Any] | None) -> bool:
    """Whether a step has left an artifact, be it a refusal."""
    return state is not None and state.is_completed()


def refused(steps: Sequence[Step], states: States) -> str:
    """Candidates by model and precision, each with the rule that it missed; empty where there are none."""
    found = []
    for step in steps:
        if _name(states[step.target]) == tasks.REFUSED:
            card = Card.read(step.stage.path(step.keys))
            if card.refusal and card.refusal.stage == step.stage.name:  # not those that pass it on
                found.append(f"{' '.join(filter(None, (card.model, card.precision)))} ({card.refusal})")
    return f"refused: {'; '.join(found)}" if found else ""


def failures(steps: Sequence[Step], states: States) -> list[str]:
    """A line for each stage that failed, then what was not run for want of it, and what is of an earlier release."""
    lines = [
        str(state.message or f"{target}: {state.name}")
        for target, state in states.items()
        if state is not None and not has_result(state)
    ]
    missing = [step.target for step in steps if states[step.target] is None]
    if missing:
        lines.append(f"not run, for want of what failed: {', '.join(missing)}")
    *others, last = steps
    kept = [
        step.target
        for step in others
        if step.stage in last.stage.deps
        and not has_result(states[step.target])
        and (step.stage.path(step.keys) / CARD).is_file()
    ]
    if kept and has_result(states[last.target]):
        lines.append(f"compared as an earlier release left it: {', '.join(kept)}")
    return lines


def bad_input(steps: Sequence[Step], states: States) -> bool:
    """Whether a stage that all students share refused its input."""
    return any(not step.stage.matrix and _name(states[step.target]) == tasks.BAD_INPUT for step in steps)


def _name(state: State[Any] | None) -> str | None:
    return state.name if state is not None else None
