"""Errors of inputs and outcomes of gates, as opposed to program faults."""

import math


class InputError(ValueError):
    """An input is invalid; the message says what, where, and how to fix it.

    The command line prints the message as one line and exits with 2. Any other exception is a program fault and keeps
    its traceback.
    """


class Refused(Exception):  # noqa: N818 - an outcome of a stage, not an error of its caller
    """A candidate missed a stage's gate: parameters and inputs are valid, but the model is not good enough.

    The stage's artifact becomes a refusal (`pipeline.core.artifact.Refusal`); other candidates continue.

    Args:
        rule: Name of the rule, ``<section>.<key>`` if it is a parameter: ``build_engine.min_cosine``.
        reason: One line: what was measured, what was expected, what may help.
        value: The figure that missed the limit. Stored as None if not finite, since JSON has no NaN.
        limit: The smallest or largest value that passes; None for a rule without a figure.
    """

    def __init__(self, rule: str, reason: str, *, value: float | None = None, limit: float | None = None) -> None:
        super().__init__(reason)
        self.rule, self.reason = rule, " ".join(reason.split())
        self.value = float(value) if value is not None and math.isfinite(value) else None
        self.limit = None if limit is None else float(limit)


class GateError(Exception):
    """A model does not meet the rules for champions; the message lists each failed rule and the shortfall.

    The command line prints the message and exits with 1.
    """
