"""The end of Prefect's temporary server, which Prefect starts where PREFECT_API_URL is not set."""

import os
import subprocess
import sys
from uuid import uuid4

_FLOW = "SAM_DISTILLERY_FLOW"
"""Environment variable by which the server of a process is known."""
_GUARD = """
read -r _
for signal in TERM TERM KILL; do
  for process in /proc/[0-9]*; do
    if grep -qs 'prefect.server.api.server' "$process/cmdline" && grep -qsz "^$1$" "$process/environ"; then
      kill -s "$signal" "${process#/proc/}"
    fi
  done
  sleep 3
done
"""
"""Shell script: waits for the end of its input, then ends the server, by force if it does not stop."""
_guards: list[subprocess.Popen[bytes]] = []
"""Kept, since a guard acts when its standard input is closed."""


def end_with_this_process() -> None:
    """Let a server that Prefect starts from now on end also if this process is killed (Linux only).

    Prefect stops it at exit, which a killed process does not reach. A shell therefore waits for the end of a pipe from
    this process, which the system closes however the process ends.
    """
    if "PREFECT_API_URL" in os.environ or sys.platform != "linux":
        return
    os.environ[_FLOW] = uuid4().hex
    command = ["sh", "-c", _GUARD, "sh", f"{_FLOW}={os.environ[_FLOW]}"]
    devnull = subprocess.DEVNULL
    guard = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=devnull, stderr=devnull, start_new_session=True)
    _guards.append(guard)
