"""The command ``doctor``: what this machine and environment are, what is wrong, and what to do about it.

The first thing an issue report needs. Libraries are imported in processes of their own and every check has a deadline,
so that a broken library, a hung driver or a dead server is one line of the report and nothing else.
"""

import json
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict

from pipeline.core.errors import GateError
from pipeline.core.preflight.services import TIMEOUT_S
from pipeline.doctor import gpu, machine, packages, presets, services
from pipeline.doctor.check import Check, Run, run_all

__all__ = ["Check", "doctor", "examine"]

_MACHINE_S = 10.0


def doctor(*, as_json: bool) -> str:
    """Examine this machine.

    Args:
        as_json: Return JSON instead of one line for each check.

    Raises:
        GateError: There is a fault; the report is printed before.
    """
    checks = examine()
    text = _json(checks) if as_json else _text(checks)
    faults = [check for check in checks if check.status == "fault"]
    if faults:
        sys.stdout.write(f"{text}\n")
        raise GateError(f"{_number(len(faults), 'fault')}: {', '.join(check.name for check in faults)}.")
    return text


def examine() -> list[Check]:
    """All checks, in the order of the report."""
    gpus = run_all({"gpu": (gpu.gpus, 2 * gpu.TIMEOUT_S + 1)})
    has_gpu = any(check.name.startswith("gpu ") for check in gpus)
    own: dict[str, Run] = {
        "software": machine.software,
        "processor": machine.processor,
        "cores": machine.cores,
        "memory": machine.memory,
        "disk": machine.disk,
        "limits": machine.limits,
    }
    outside: dict[str, Run] = {
        "git": services.git,
        "checkout": services.checkout,
        "params.yaml": services.params,
        "dvc remote": services.dvc_remote,
        "mlflow store": services.mlflow,
        "prefect server": services.prefect,
    }
    first = run_all({name: (run, _MACHINE_S) for name, run in own.items()})
    rest = run_all(
        packages.checks(has_gpu) | {name: (run, 2 * TIMEOUT_S + _MACHINE_S) for name, run in outside.items()}
    )
    return [*first, *gpus, *rest, *run_all({"presets": (presets.presets, presets.TIMEOUT_S + 5)})]


def _json(checks: Sequence[Check]) -> str:
    counts = Counter(check.status for check in checks)
    report = {
        "faults": counts["fault"],
        "warnings": counts["warning"],
        "checks": [asdict(check) for check in checks],
    }
    return json.dumps(report, indent=1, allow_nan=False)


def _text(checks: Sequence[Check]) -> str:
    lines = [
        f"{check.status:<8} {check.name:<17} {check.text}" + (f": {check.remedy}" if check.remedy else "")
        for check in checks
    ]
    counts = Counter(check.status for check in checks)
    return "\n".join([*lines, f"{_number(counts['fault'], 'fault')}, {_number(counts['warning'], 'warning')}"])


def _number(count: int, what: str) -> str:
    return f"{count or 'no'} {what}" + ("" if count == 1 else "s")
