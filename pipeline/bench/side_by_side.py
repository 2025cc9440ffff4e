"""How fast a model is in each runtime and precision, side by side in one run.

All candidates are built first and then measured in turns, so that a change of the machine's clock or load meets every
row alike. Nothing is judged and nothing is kept: engines are built in a temporary directory, from fresh weights unless
others are named, since the time does not depend on their values.
"""

import sys
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from tqdm import tqdm

from pipeline.bench import attention, decoder, encoder, evaluate, everything, training
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
    "evaluate": evaluate.SUBJECT,
    "everything": everything.SUBJECT,
}
"""What can be measured."""

_BASELINE: Combination = ("torch", "fp32")
_ALL = ("all",)


def compare(subject: str, settings: Settings) -> Report:
    """Measure everything asked for; what cannot be is named on stderr and in the report.

    Raises:
        InputError: The subject, a student, a runtime or a precision is unknown, or no combination is possible.
    """
    _known("subject", [subject], SUBJECTS)
    _known("student", settings.students, STUDENTS)
    _known("runtime", settings.runtimes, RUNTIMES)
    _known("precision", settings.precisions, PRECISIONS)
    what = SUBJECTS[subject]
    combinations, left_out = possible(what, settings)
    for note in left_out:
        tqdm.write(f"left out: {note}", file=sys.stderr)
    if not combinations:
        raise InputError(f"nothing is left to measure of {subject}: ask for others of --runtimes and --precisions.")
    threads = torch.get_num_threads()
    torch.set_num_threads(settings.threads)
    try:
        with ExitStack() as stack:
            directory = Path(stack.enter_context(TemporaryDirectory(prefix="bench-")))
            candidates = list[Candidate]()
            asked = _asked(what, settings, combinations)
            for name, own in progress(asked, "build", "student" if what.of_students else "subject"):
                place = directory / (name or subject)
                place.mkdir()
                candidates += what.build(settings, name, own, place, stack)
            timings = measure_interleaved([(candidate.call, candidate.clock) for candidate in candidates], settings)
            return Report(subject, what.unit, settings, rows(candidates, timings), left_out)
    finally:
        torch.set_num_threads(threads)


def _asked(what: Subject, settings: Settings, combinations: list[Combination]) -> list[tuple[str, list[Combination]]]:
    """What to build, by name: first a baseline for all, also where PyTorch itself was not asked for."""
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
    """The combinations of runtime and precision that exist, the baseline first, and why the others do not."""
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
