"""Full disk, killed servers, a clock that is set back, two releases at once; each followed by a rerun."""

import os
import random
import shutil
import socket
import sqlite3
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.chaos.checkout import RELEASES, DamageError, Reference, check_sound, finish, remove
from tests.chaos.processes import Command

_MOST_LINES = 20
"""Lines that a failed release may print."""
_STAGES = 3
"""Stages besides the comparison that a disturbed release has to run."""
_DAY_S = 86400


def full_disk(reference: Reference, seed: int, rounds: int) -> Iterator[str]:
    """Fill the disk during a release: a tmpfs of random size, which is enlarged for the rerun. Needs root.

    Yields:
        A line per round.

    Raises:
        DamageError: Something is broken, or the rerun has other results.
        HangError: A command did not end.
    """
    for number in range(rounds):
        generator = random.Random(f"{seed} disk {number}")
        disk = reference.root.parent / f"disk-{number}"
        disk.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "tmpfs", str(disk)], capture_output=True, text=True)
        if mounted.returncode:
            yield f"skipped, since tmpfs cannot be mounted: {mounted.stderr.strip()}"
            continue
        try:
            root = reference.forgetful(f"disk-{number}/clone", generator, _STAGES)
            free_kib = generator.randrange(512, 24_000)
            used_kib = (shutil.disk_usage(disk).used >> 10) + free_kib
            subprocess.run(["mount", "-o", f"remount,size={used_kib}k", str(disk)], check=True)
            command = Command(root, ("flows.release",), SAM_DISTILLERY_FREE_MIB="0", TMPDIR=str(disk))
            code = command.wait()
            lines = command.output().splitlines()
            subprocess.run(["mount", "-o", "remount,size=50%", str(disk)], check=True)
            progress = check_sound(root)
            if code and len(lines) > _MOST_LINES:
                raise DamageError(f"the release printed {len(lines)} lines: {lines}")
            finish(root, generator.choice(RELEASES))
            reference.check(root)
        finally:
            subprocess.run(["umount", "--lazy", str(disk)], check=True)
        reason = lines[-1] if code else "it was large enough"
        yield f"{free_kib >> 10} MiB free, exit code {code}, {len(progress.stages)} stages: {reason[:160]}"


def mlflow_server(reference: Reference, seed: int, rounds: int) -> Iterator[str]:
    """Kill MLflow's server during a release, and restart it for the rerun.

    Yields:
        A line per round.

    Raises:
        DamageError: Something is broken, or the rerun has other results.
        HangError: A command did not end.
    """
    for number in range(rounds):
        generator = random.Random(f"{seed} mlflow {number}")
        root = reference.forgetful(f"mlflow-{number}", generator, _STAGES)
        port = _free_port()
        uri = f"http://127.0.0.1:{port}"
        server = (
            "mlflow",
            "server",
            "--port",
            str(port),
            "--workers",
            "1",
            "--backend-store-uri",
            "sqlite:///mlflow.db",
        )
        yield _kill_server(reference, root, generator, server, f"{uri}/health", MLFLOW_TRACKING_URI=uri)
        remove(root)


def prefect_server(reference: Reference, seed: int, rounds: int) -> Iterator[str]:
    """Kill Prefect's server during a release, and restart it for the rerun.

    Yields:
        A line per round.

    Raises:
        DamageError: Something is broken, or the rerun has other results.
        HangError: A command did not end.
    """
    for number in range(rounds):
        generator = random.Random(f"{seed} prefect {number}")
        root = reference.forgetful(f"prefect-{number}", generator, _STAGES)
        port = _free_port()
        uri = f"http://127.0.0.1:{port}/api"
        server = ("prefect", "server", "start", "--port", str(port), "--no-ui")
        yield _kill_server(reference, root, generator, server, f"{uri}/health", PREFECT_API_URL=uri)
        remove(root)


def _kill_server(
    reference: Reference,
    root: Path,
    generator: random.Random,
    server: tuple[str, ...],
    health: str,
    **environment: str,
) -> str:
    with _running(root, server, health) as running:
        release = Command(root, ("flows.release",), **environment)
        delay = generator.uniform(10, reference.seconds / 3)
        ended = not release.runs_for(delay)
        running.kill()
        code = release.wait()
    lines = release.output().splitlines()
    if ended and code:
        raise DamageError(f"the release ended with {code} before the server was killed: {lines}")
    progress = check_sound(root)
    if code and len(lines) > _MOST_LINES:
        raise DamageError(f"the release printed {len(lines)} lines: {lines}")
    with _running(root, server, health) as running:
        finish(root, ("flows.release",), **environment)
        running.kill()
    reference.check(root)
    return f"after {delay:.1f} s, exit code {code}, {len(progress.stages)} stages: {(lines or [''])[-1][:160]}"


@contextmanager
def _running(root: Path, arguments: tuple[str, ...], health: str) -> Iterator[Command]:
    """A server that answers."""
    server = Command(root, arguments)
    try:
        for _ in range(300):
            if subprocess.run(["curl", "-sf", "-o", os.devnull, health]).returncode == 0:
                break
            if not server.runs_for(1):
                raise DamageError(f"the server did not start: {server.output()[-500:]}")
        yield server
    finally:
        server.kill()


def clock(reference: Reference, seed: int, rounds: int) -> Iterator[str]:
    """Set the clock back a day between a killed release and its rerun: all times of files and runs are in the future.

    Yields:
        A line per round.

    Raises:
        DamageError: Something is broken, or the rerun has other results.
        HangError: A command did not end.
    """
    for number in range(rounds):
        generator = random.Random(f"{seed} clock {number}")
        root = reference.forgetful(f"clock-{number}", generator, _STAGES)
        command = Command(root, generator.choice(RELEASES))
        delay = generator.uniform(5, reference.seconds / 3)
        if command.runs_for(delay):
            command.kill()
        before = check_sound(root)
        for path in root.rglob("*"):
            if path.is_file() and not path.is_symlink():
                os.utime(path, (path.stat().st_atime + _DAY_S, path.stat().st_mtime + _DAY_S))
        connection = sqlite3.connect(root / "mlflow.db")
        with connection:
            connection.execute("UPDATE runs SET start_time = start_time + ?", (_DAY_S * 1000,))
        connection.close()
        check_sound(root, before)
        finish(root, generator.choice(RELEASES))
        reference.check(root)
        remove(root)
        yield f"a day back, after a kill at {delay:.1f} s"


def two_at_once(reference: Reference, seed: int, rounds: int) -> Iterator[str]:
    """Start two releases in one checkout; one of them may be refused, and a rerun finishes what is missing.

    Yields:
        A line per round.

    Raises:
        DamageError: Something is broken, both were refused, or the results differ.
        HangError: A command did not end.
    """
    for number in range(rounds):
        generator = random.Random(f"{seed} two {number}")
        root = reference.forgetful(f"two-{number}", generator, _STAGES)
        first = Command(root, generator.choice(RELEASES))
        time.sleep(generator.uniform(0, 15))
        second = Command(root, generator.choice(RELEASES))
        codes = [first.wait(), second.wait()]
        check_sound(root)
        names = " and ".join(" ".join(command.arguments) for command in (first, second))
        if all(codes):
            raise DamageError(f"{names} both failed: {first.output()[-700:]} {second.output()[-700:]}")
        finish(root, generator.choice(RELEASES))
        reference.check(root)
        remove(root)
        yield f"{names} ended with {codes}"


def _free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])
