"""Time models in several runtimes and precisions, side by side in one run.

All candidates are built first and then measured in turns, so that changes of clock or load affect all rows alike.
Engines are built in a temporary directory, by default from random weights, since times do not depend on them.
"""

import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tqdm import tqdm

from pipeline.bench import attention, decoder, encoder, evaluate, everything, loading, training
from pipeline.bench.candidate import Candidate, Subject
from pipeline.bench.interleaved import measure_interleaved
from pipeline.bench.settings import PRECISIONS, RUNTIMES, Combination, Settings
from pipeline.bench.table import Report, rows
from pipeline.core.errors import InputError
from pipeline.core.progress import progress
from pipeline.models.students import STUDENTS

SUBJECTS: Mapping[str, Subject] = {
    "attention": attention.SUBJECT,
    "encoder": encoder.SUBJECT,
    "decoder": decoder.SUBJECT,
    "training": training.SUBJECT,
    "loading": loading.SUBJECT,
    "evaluate": evaluate.SUBJECT,
    "everything": everything.SUBJECT,
}
"""Subjects by name."""

_BASELINE: Combination = ("torch", "fp32")
_ALL = ("all",)


def compare(subject: str, settings: Settings, subjects: Mapping[str, Subject] = SUBJECTS) -> Report:
    """Measure all possible combinations of the settings; the others are listed on stderr and in the report.

    Raises:
        InputError: The subject, a student, a runtime or a precision is unknown, or no combination is possible.
    """
    _known("subject", [subject], subjects)
    _known("student", settings.students, STUDENTS)
    _known("runtime", settings.runtimes, RUNTIMES)
    _known("precision", settings.precisions, PRECISIONS)
    what = subjects[subject]
    combinations, left_out = possible(what, settings)
    for note in left_out:
        tqdm.write(f"left out: {note}", file=sys.stderr)
    if not combinations:
        raise InputError(f"no combination of --runtimes and --precisions can be measured for {subject}: choose others.")
    threads = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        with ExitStack() as stack:
            directory = Path(stack.enter_context(TemporaryDirectory(prefix="bench-")))
            candidates = list[Candidate]()
            students = _to_build(what, settings, combinations)
            for name, own in progress(students, "build", "student" if what.of_students else "subject"):
                folder = directory / (name or subject)
                folder.mkdir()
                candidates += what.build(settings, name, own, folder, stack)
            timings = measure_interleaved([(candidate.call, candidate.clock) for candidate in candidates], settings)
            return Report(subject, what.unit, settings, rows(candidates, timings), left_out)
    finally:
        torch.set_num_threads(threads)


def _to_build(
    what: Subject, settings: Settings, combinations: list[Combination]
) -> list[tuple[str, list[Combination]]]:
    """List the students to build with their combinations, the baseline first, even if it is not among the settings."""
    if not what.of_students:
        return [("", combinations)]
    if what.paired:
        return [(student, combinations) for student in settings.students]
    students = settings.students
    if what.reference:
        return [(what.reference(students), [_BASELINE]), *((student, combinations) for student in students)]
    own = sorted({*combinations, _BASELINE}, key=_order)
    return [(student, combinations if i else own) for i, student in enumerate(students)]


def possible(what: Subject, settings: Settings) -> tuple[list[Combination], list[str]]:
    """List the possible combinations of runtime and precision, the baseline first, and reasons for the others."""
    combinations, left_out = list[Combination](), list[str]()
    for runtime in settings.runtimes:
        reasons = {precision: what.refuses(runtime, precision) for precision in settings.precisions}
        combinations += [(runtime, precision) for precision, reason in reasons.items() if not reason]
        if None not in reasons.values() and len(set(reasons.values())) == 1:
            left_out.append(f"{runtime}: {next(iter(reasons.values()))}")
        else:
            left_out += [f"{runtime} {precision}: {reason}" for precision, reason in reasons.items() if reason]
    return sorted(set(combinations), key=_order), left_out


def _order(combination: Combination) -> tuple[int, int]:
    return RUNTIMES.index(combination[0]), PRECISIONS.index(combination[1])


def _known(what: str, names: tuple[str, ...] | list[str], table: Mapping[str, object] | tuple[str, ...]) -> None:
    for name in names:
        if name not in table:
            raise InputError(f"unknown {what} {name!r}: there is {', '.join(table)}.")
