"""A command with all its processes, which SIGKILL may end at any moment."""

import os
import random
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from uuid import uuid4

import psutil

LIMIT_S = 3600.0
"""Seconds after which a command counts as hung."""
ORPHANS_S = 60.0
"""Seconds that processes may outlive their command, to clean up."""
_MARK = "SAM_DISTILLERY_CHAOS"
"""Environment variable by which the processes of a command are known, also those whose parent ended."""
_OMITTED = ("MLFLOW_TRACKING_URI", "PREFECT_API_URL", "PYTHONDONTWRITEBYTECODE")


class HangError(Exception):
    """A command did not end, or its processes outlived it."""


class Command:
    """A running command of a checkout.

    Args:
        root: The checkout.
        arguments: Module and arguments, as after ``python -m``.
        environment: Environment variables added to this process's.
    """

    def __init__(self, root: Path, arguments: Sequence[str], **environment: str) -> None:
        self.root, self.arguments, self.mark = root, arguments, uuid4().hex
        self.log = root.parent / f"{root.name}.log"
        with self.log.open("a") as stream:
            stream.write(f"\n===== {' '.join(arguments)} {environment}\n")
            stream.flush()
            self._start = stream.tell()
            self.process = subprocess.Popen(
                [sys.executable, "-m", *arguments],
                cwd=root,
                env=surroundings(root) | {_MARK: self.mark} | environment,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def processes(self) -> list[psutil.Process]:
        """All processes of the command that are alive."""
        return [process for process in psutil.process_iter() if self._owns(process)]

    def _owns(self, process: psutil.Process) -> bool:
        try:
            return process.status() != psutil.STATUS_ZOMBIE and process.environ().get(_MARK) == self.mark
        except (psutil.Error, OSError):
            return False

    def wait(self, limit_s: float = LIMIT_S) -> int:
        """Exit code of the command, once all its processes have ended.

        Raises:
            HangError: They have not.
        """
        try:
            code = self.process.wait(limit_s)
        except subprocess.TimeoutExpired:
            self.kill()
            raise HangError(f"`{' '.join(self.arguments)}` was still running after {limit_s:.0f} s") from None
        end = time.monotonic() + ORPHANS_S
        while orphans := self.processes():
            if time.monotonic() > end:
                lines = [" ".join(orphan.cmdline())[:200] for orphan in orphans]
                self.kill()
                raise HangError(f"`{' '.join(self.arguments)}` left processes behind: {lines}")
            time.sleep(0.2)
        return code

    def runs_for(self, seconds: float) -> bool:
        """Whether the command is still running after ``seconds``."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            return True
        return False

    def kill(self) -> None:
        """End all processes of the command at once, as a power failure does."""
        while processes := self.processes():
            for process in processes:
                _kill(process)
        self.process.wait()

    def kill_one(self, generator: random.Random) -> str:
        """End one of its processes, as the kernel does where memory runs out; returns the process's command line."""
        lines = {process: _line(process) for process in sorted(self.processes(), key=lambda each: each.pid)}
        processes = [process for process, line in lines.items() if "python" in line]  # no shell that only waits
        if not processes:  # all have ended
            return ""
        process = generator.choice(processes)
        _kill(process)
        return " ".join(lines[process].split()[1:4])

    def output(self) -> str:
        """Standard output and error."""
        with self.log.open(errors="replace") as stream:
            stream.seek(self._start)
            return stream.read()


def _line(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def _kill(process: psutil.Process) -> None:
    try:
        process.kill()
    except psutil.NoSuchProcess:
        return


def surroundings(root: Path) -> dict[str, str]:
    """Environment of commands in a checkout: this interpreter, one thread, no settings of the caller."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    kept = {name: value for name, value in os.environ.items() if name not in _OMITTED}
    return kept | {
        "PATH": path,
        "PYTHONPATH": "",
        "OMP_NUM_THREADS": "1",
        "PREFECT_HOME": str(root / ".prefect"),
        "DVC_SITE_CACHE_DIR": str(root.parent / "dvc-site"),
    }
