"""Which presets this machine can run, asked of ``plan --fit``, which needs a torch that works."""

import json
import sys
from collections.abc import Sequence

from pipeline.core.errors import InputError
from pipeline.doctor.check import Check, output_of

TIMEOUT_S = 120.0


def presets() -> Sequence[Check]:
    """One line with the presets that fit, and one for each reason why others do not."""
    try:
        code, output, error = output_of([sys.executable, "-m", "pipeline", "plan", "--fit", "--json"], TIMEOUT_S)
        if code != 0:
            raise InputError(next(iter(reversed(error.strip().splitlines())), f"status {code}")[:300])
        found = json.loads(output)
    except (InputError, ValueError) as error:
        return [Check("presets", "warning", f"were not checked ({error})", "see the libraries above")]
    fitting = [entry["preset"] for entry in found if not entry["lacks"]]
    reasons: dict[str, list[str]] = {}
    for entry in found:
        if entry["lacks"]:
            reasons.setdefault("; ".join(entry["lacks"]), []).append(entry["preset"])
    first = Check("presets", "ok", f"{', '.join(fitting) or 'none'} can run here", values={"presets": found})
    return [first, *(_other(names, reason) for reason, names in reasons.items())]


def _other(names: Sequence[str], reason: str) -> Check:
    return Check("not here", "ok", f"{', '.join(names)}: {reason}")
