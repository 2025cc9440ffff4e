"""`python -m tests.chaos`: faults injected into a small release, a table, exit code 1 at any fault."""

import argparse
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.chaos import kills, registry, surroundings
from tests.chaos.checkout import DamageError, Reference, real, stand_in
from tests.chaos.processes import HangError

Scenario = Callable[[Reference, int, int], Iterator[str]]
SCENARIOS: dict[str, Scenario] = {
    "SIGKILL in a release": kills.release_kills,
    "SIGKILL in register, promote, rollback": registry.registry_kills,
    "full disk": surroundings.full_disk,
    "MLflow's server killed": surroundings.mlflow_server,
    "Prefect's server killed": surroundings.prefect_server,
    "clock set back": surroundings.clock,
    "two releases at once": surroundings.two_at_once,
}


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.chaos")
    parser.add_argument("--kills", type=int, default=100, help="kills in releases")
    parser.add_argument("--rounds", type=int, default=2, help="rounds of each other scenario")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=list(SCENARIOS), action="append", help="only this scenario; may be repeated")
    parser.add_argument("--stand-in", action="store_true", help="the tests' pipeline of five stages without models")
    parser.add_argument("--directory", type=Path, help="where to work; kept, to repeat with its undisturbed release")
    arguments = parser.parse_args()
    directory = arguments.directory or Path(tempfile.mkdtemp(prefix="chaos-"))
    directory.mkdir(parents=True, exist_ok=True)
    say("an undisturbed release runs first")
    reference = Reference.make(directory.resolve(), stand_in if arguments.stand_in else real)
    say(f"it took {reference.seconds:.0f} s")
    rows = []
    for name in arguments.only or SCENARIOS:
        rounds = arguments.kills if name == next(iter(SCENARIOS)) else arguments.rounds
        rows.append(_run(name, reference, arguments.seed, rounds))
    sys.stdout.write("| disturbance | rounds | faults | time |\n|---|---|---|---|\n" + "\n".join(rows) + "\n")
    failed = any("| 0 |" not in row for row in rows)
    if not failed and arguments.directory is None:
        shutil.rmtree(directory, ignore_errors=True)
    return int(failed)


def _run(name: str, reference: Reference, seed: int, rounds: int) -> str:
    """Run a scenario up to its first fault; returns its row of the table."""
    start, done, faults = time.monotonic(), 0, 0
    try:
        for line in SCENARIOS[name](reference, seed, rounds):
            done += 1
            say(f"{name} {done} of {rounds}: {line}")
    except (DamageError, HangError) as fault:
        faults = 1
        say(f"{name}: FAULT: {fault}")
        say(f"repeat: python -m tests.chaos --only '{name}' --seed {seed} --directory {reference.root.parent}")
    return f"| {name} | {done} | {faults} | {(time.monotonic() - start) / 60:.0f} min |"


def say(line: str) -> None:
    """Print progress at once."""
    sys.stdout.write(f"{time.strftime('%H:%M:%S')} {line}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
