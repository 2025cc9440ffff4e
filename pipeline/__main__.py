"""``python -m pipeline <command>``, also installed as ``sam-distillery``: what people, DVC and the flows start."""

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pipeline.cli import app
from pipeline.core import command_line, process, telemetry


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        0; 1 where `promote` or `verify` turned a model down or `doctor` found a fault; 2 for bad input; 3 where a stage
        refused its candidate (0 under DVC, for which a refusal is a result); 130 after Ctrl-C, 143 after SIGTERM.
    """
    telemetry.off()
    if "DVC_STAGE" in os.environ:  # a person may log out during a long run; a killed `dvc` leaves nothing behind
        process.die_with_parent()
    process.raise_on_signals()
    program = Path(sys.argv[0]).name
    return command_line.run(app, arguments, program if program == "sam-distillery" else "python -m pipeline")


if __name__ == "__main__":
    raise SystemExit(main())
