"""The attacks there are."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple, TypeAlias

from varcon_plugin.commands.places import project_root

__all__ = [
    "ATTACKS",
    "Arena",
    "Attack",
    "Trial",
    "attack",
    "finish",
    "kill_after",
    "start",
]


class Arena(NamedTuple):
    """Where an attack takes place.

    Attributes:
        folder: empty, of this attack alone; an absolute path.
        rounds: how often to repeat what is random.
        chance: to draw from, seeded.
    """

    folder: Path
    rounds: int
    chance: random.Random


class Trial(NamedTuple):
    """One thing that was tried.

    Attributes:
        what: in words.
        survived: whether the promise held.
        seen: what was seen, for the report of what did not survive.
    """

    what: str
    survived: bool
    seen: str = ""


class Attack(NamedTuple):
    """A way to break a promise.

    Attributes:
        name: on the command line.
        promise: in docs/reliability.md.
        run: yields its trials, one after the other.
    """

    name: str
    promise: str
    run: Callable[[Arena], Iterator[Trial]]


ATTACKS: dict[str, Attack] = {}
Run: TypeAlias = Callable[[Arena], Iterator[Trial]]


def attack(promise: str) -> Callable[[Run], Run]:
    """Add a generator to `ATTACKS`, under its name with ``-`` for ``_``."""

    def register(run: Run) -> Run:
        name = run.__name__.replace("_", "-")
        ATTACKS[name] = Attack(name, promise, run)
        return run

    return register


def start(*command: object, **environment: str) -> subprocess.Popen[str]:
    """A command as a user types it, with both outputs in one pipe.

    It runs among ``configs`` and ``tools``, with a process group of its own;
    ``python`` is this one.
    """
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    return subprocess.Popen(
        [str(part) for part in command],
        cwd=project_root(),
        env=os.environ | {"PATH": search} | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def kill_after(process: subprocess.Popen[str], seconds: float) -> None:
    """Kill one process, not its group, if it is not over before."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    if process.stdout is not None:
        process.stdout.close()


def finish(process: subprocess.Popen[str], seconds: float = 1200) -> tuple[int, str]:
    """Exit status and output of a process; after ``seconds`` its group is killed.

    A hang is found by that, even on a machine that is busy with other things.
    """
    try:
        output, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        output += f"\nstill running after {seconds:g} s, killed"
    return process.returncode, output
