"""What the pipeline refuses, as opposed to faults of the program."""

import math


class InputError(ValueError):
    """Something handed to the pipeline is wrong; its text says what, where, and how to mend it.

    The command line prints the text as one line and exits with 2. Everything else that is raised is a fault of
    the program and keeps its traceback.
    """


class Refused(Exception):  # noqa: N818 - an outcome of a stage, not an error of its caller
    """A candidate missed a gate of a stage: its parameters and inputs are right, the model is not good enough.

    The stage's artifact becomes a refusal (`pipeline.core.artifact.Refusal`), and the other candidates go on.

    Args:
        rule: Its name, ``<section>.<key>`` where it is a parameter: ``build_engine.min_cosine``.
        reason: One line for a person: what was found, what was expected, what may help.
        value: The figure that missed the limit. What is not finite is kept as None, for JSON has no NaN.
        limit: The least or the greatest value that passes; None for a rule that has no figure.
    """

    def __init__(self, rule: str, reason: str, *, value: float | None = None, limit: float | None = None) -> None:
        super().__init__(reason)
        self.rule, self.reason = rule, " ".join(reason.split())
        self.value = float(value) if value is not None and math.isfinite(value) else None
        self.limit = None if limit is None else float(limit)


class GateError(Exception):
    """A model does not meet the rules for becoming champion; its text has each rule that failed and by how much.

    The command line prints the text and exits with 1.
    """
