"""SIGKILL at random moments of a whole release, until the release is finished in spite of them."""

import random
from collections.abc import Iterator
from pathlib import Path

from tests.chaos.checkout import RELEASES, DamageError, Reference, check_sound, finish, remove
from tests.chaos.processes import Command
from tests.chaos.soundness import Progress, is_cut_off

MEAN_KILLS = 8
"""Kills per undisturbed release's time, on average."""


def release_kills(reference: Reference, seed: int, kills: int) -> Iterator[str]:
    """Kill a release ``kills`` times; one that is finished is compared with the reference, and a new one starts.

    Yields:
        A line per kill.

    Raises:
        DamageError: Something is broken or lost after a kill, or a finished release has other results.
        HangError: A command did not end.
    """
    done, number = 0, 0
    while done < kills:
        number += 1
        root = reference.fresh(f"kills-{number}")
        progress, finished = Progress(), False
        while not finished and done < kills:
            generator = random.Random(f"{seed} release {number} kill {done}")
            # Only the flow repairs a dvc.lock that DVC was writing when it was killed; DVC itself refuses it.
            arguments = RELEASES[1] if is_cut_off(root) else generator.choice(RELEASES)
            delay = generator.uniform(0, 2 * reference.seconds / MEAN_KILLS)
            command = Command(root, arguments)
            if not command.runs_for(delay):
                if code := command.wait():
                    raise DamageError(f"`{' '.join(arguments)}` ended with {code}: {command.output()[-1500:]}")
                finished = True
                continue
            victim, finished = _kill(command, generator)
            done += 1
            progress = check_sound(root, progress)
            yield f"release {number}, `{' '.join(arguments)}` after {delay:.1f} s: {victim}; {describe(root, progress)}"
        if not finished:
            finish(root, RELEASES[1] if is_cut_off(root) else RELEASES[0])
        reference.check(root)
        remove(root)


def _kill(command: Command, generator: random.Random) -> tuple[str, bool]:
    """Kill all processes of a command, or one time in three a single one, after which the command ends by itself.

    Returns:
        What was done, and whether the command succeeded nevertheless.
    """
    if generator.random() < 2 / 3:
        command.kill()
        return "all processes killed", False
    name = command.kill_one(generator)
    code = command.wait()
    return f"`{name}` killed, the command ended with {code}", code == 0


def describe(root: Path, progress: Progress) -> str:
    """Progress in a few words."""
    steps = max(progress.steps.values(), default=0)
    text = f"{len(progress.stages)} stages, {progress.blocks} files of embeddings, checkpoint at step {steps}"
    return f"{text}, dvc.lock cut off" if is_cut_off(root) else text
