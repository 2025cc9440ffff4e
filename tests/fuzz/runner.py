"""Executes cases in a child process, which a signal or a hang may end, and collects their outcomes."""

import json
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[2]


@dataclass
class Outcomes:
    """Counts of outcomes by kind, and the faults as (kind, seed, what)."""

    counts: dict[str, Counter] = field(default_factory=dict)
    faults: list[tuple[str, int, str]] = field(default_factory=list)

    def add(self, kind: str, seed: int, outcome: str, what: str) -> None:
        """Count one case."""
        self.counts.setdefault(kind, Counter())[outcome] += 1
        if outcome == "fault":
            self.faults.append((kind, seed, what))

    def table(self) -> str:
        """Markdown table by kind."""
        rows = ["| kind | cases | accepted | refused | faults |", "|---|---|---|---|---|"]
        total = sum(self.counts.values(), Counter())
        for kind, count in [*self.counts.items(), ("all", total)]:
            numbers = (count.total(), count["accepted"], count["refused"], count["fault"])
            rows.append(f"| {kind} | " + " | ".join(f"{number:,}" for number in numbers) + " |")
        return "\n".join(rows)


def execute(cases: Iterable[tuple[str, int]]) -> Iterator[tuple[str, int, str, str]]:
    """Yield (kind, seed, outcome, what) per case; a new child continues after one that ended."""
    child = None
    with tempfile.TemporaryFile("w+") as errors:
        try:
            for kind, seed in cases:
                child = child or _start(errors)
                print(json.dumps([kind, seed]), file=child.stdin, flush=True)
                answer = child.stdout.readline()
                if answer:
                    yield kind, seed, *json.loads(answer)
                else:
                    status = child.wait()
                    errors.seek(0)
                    what = errors.read()[-1500:]
                    yield kind, seed, "fault", f"the process ended with {status}: {what}"
                    errors.seek(0)
                    errors.truncate()
                    child = None
        finally:
            if child is not None:
                child.stdin.close()
                child.wait()
                child.stdout.close()


def _start(errors) -> subprocess.Popen:
    command = [sys.executable, "-m", "tests.fuzz.child"]
    return subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True, bufsize=1
    )
