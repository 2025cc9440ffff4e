"""Outcome of a release: failed stages and refused candidates, as readable lines."""

from collections.abc import Mapping, Sequence
from typing import Any

from prefect.client.schemas.objects import State

from flows import dvc, tasks
from flows.schedule import Step
from pipeline.core.artifact import CARD, Card

States = Mapping[str, State[Any] | None]
"""Final state of each step of a release, by target; None if it was not run."""


class ReleaseFailedError(dvc.StageFailedError):
    """Stages failed; the message has one line per failed stage, and one for stages that were not run.

    Attributes:
        bad_input: Whether a stage shared by all students rejected its input.
        rows: The leaderboard; None if nothing was compared.
        refused: Refused candidates, as formatted by `refused`.
    """

    def __init__(
        self, lines: Sequence[str], *, bad_input: bool, rows: list[dict[str, Any]] | None, refused: str
    ) -> None:
        super().__init__("\n".join(lines))
        self.bad_input, self.rows, self.refused = bad_input, rows, refused


def has_result(state: State[Any] | None) -> bool:
    """Whether a step produced an artifact, including a refusal."""
    return state is not None and state.is_completed()


def refused(steps: Sequence[Step], states: States) -> str:
    """Refused candidates by model and precision, each with the rule it missed; empty if there are none."""
    candidates = []
    for step in steps:
        if _name(states[step.target]) == tasks.REFUSED:
            card = Card.read(step.stage.path(step.keys))
            if card.refusal and card.refusal.stage == step.stage.name:  # not those that pass it on
                candidates.append(f"{' '.join(filter(None, (card.model, card.precision)))} ({card.refusal})")
    return f"refused: {'; '.join(candidates)}" if candidates else ""


def failures(steps: Sequence[Step], states: States) -> list[str]:
    """One line per failed stage, then the stages not run because of it and results reused from an earlier release."""
    lines = [
        str(state.message or f"{target}: {state.name}")
        for target, state in states.items()
        if state is not None and not has_result(state)
    ]
    missing = [step.target for step in steps if states[step.target] is None]
    if missing:
        lines.append(f"not run, because a dependency failed: {', '.join(missing)}")
    *others, last = steps
    outdated = [
        step.target
        for step in others
        if step.stage in last.stage.deps
        and not has_result(states[step.target])
        and (step.stage.path(step.keys) / CARD).is_file()
    ]
    if outdated and has_result(states[last.target]):
        lines.append(f"compared with the result of an earlier release: {', '.join(outdated)}")
    return lines


def bad_input(steps: Sequence[Step], states: States) -> bool:
    """Whether a stage shared by all students rejected its input."""
    return any(not step.stage.matrix and _name(states[step.target]) == tasks.BAD_INPUT for step in steps)


def _name(state: State[Any] | None) -> str | None:
    return state.name if state is not None else None
