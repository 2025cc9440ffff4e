"""`python -m tests.fuzz --cases N --seed S`: cases of all kinds in turn, a table, exit code 1 at any fault."""

import argparse
import sys

from tests.fuzz.child import KINDS
from tests.fuzz.runner import Outcomes, execute


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz")
    parser.add_argument("--cases", type=int, default=20_000, help="cases over all kinds")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first case of each kind")
    parser.add_argument("--kind", choices=list(KINDS), action="append", help="only this kind; may be repeated")
    arguments = parser.parse_args()
    kinds = arguments.kind or list(KINDS)
    cases = [(kinds[i % len(kinds)], arguments.seed + i // len(kinds)) for i in range(arguments.cases)]
    outcomes = Outcomes()
    for number, (kind, seed, outcome, what) in enumerate(execute(cases), 1):
        outcomes.add(kind, seed, outcome, what)
        if outcome == "fault":
            repeat = f"python -m tests.fuzz --cases 1 --seed {seed} --kind '{kind}'"
            sys.stdout.write(f"\nfault in {kind}, seed {seed}: {what}\nrepeat: {repeat}\n")
            sys.stdout.flush()
        if number % 500 == 0:
            sys.stderr.write(f"{number} of {len(cases)} cases, {len(outcomes.faults)} faults\n")
    sys.stdout.write(f"{outcomes.table()}\n")
    return 1 if outcomes.faults else 0


if __name__ == "__main__":
    sys.exit(main())
