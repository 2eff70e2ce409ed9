"""Trainings that are killed at any moment, and disks that are full."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import torch

from varcon_plugin.checkpoints.newest import newest
from varcon_plugin.checkpoints.reading import load_state_dict
from varcon_plugin.commands.attacks.registry import (
    Arena,
    Trial,
    attack,
    finish,
    kill_after,
    start,
)

__all__ = ["full_disk", "killed_launcher", "killed_training"]

EPOCHS = 4
FLAGS = [
    *("--cfg-options", f"train_cfg.max_epochs={EPOCHS}"),
    *(
        "default_hooks.checkpoint.interval=1",
        "default_hooks.checkpoint.max_keep_ckpts=1",
    ),
    *("model.backbone.base_channels=4", "model.backbone.stem_channels=4"),
    "model.neck.in_channels=32",
]
TRAIN = ("python", "tools/train.py", "configs/varcon_r18_digits.py", "--resume")
DISK = "3m"  # of the tmpfs: some checkpoints of 0.4 MB, and logs


@attack(
    "a training that is killed at any moment goes on, and ends as if it had not been"
)
def killed_training(arena: Arena) -> Iterator[Trial]:
    """SIGKILL or SIGTERM at a random moment, twice a run; the weights are compared."""
    whole = arena.folder / "whole"
    finish(start(*TRAIN, "--work-dir", whole, *FLAGS))
    expected = weights(whole)
    for number in range(arena.rounds):
        folder = arena.folder / str(number)
        told = []
        for _ in range(2):
            seconds = arena.chance.uniform(3, 14)
            process = start(*TRAIN, "--work-dir", folder, *FLAGS)
            if arena.chance.random() < 0.5:
                kill_after(process, seconds)
                told.append(f"killed after {seconds:.1f} s")
            else:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(seconds)
                process.send_signal(signal.SIGTERM)
                code, _ = finish(process)
                told.append(f"terminated after {seconds:.1f} s: {code}")
        code, output = finish(start(*TRAIN, "--work-dir", folder, *FLAGS))
        held = code == 0 and equal(weights(folder), expected)
        yield Trial(", ".join(told), held, output)


@attack("processes end with their launcher, and another goes on with the run")
def killed_launcher(arena: Arena) -> Iterator[Trial]:
    """SIGKILL for dist_train.sh alone, with two processes; the weights are compared."""
    command = ["bash", "tools/dist_train.sh", TRAIN[2], "2", "--resume"]
    finish(start(*command, "--work-dir", arena.folder / "whole", *FLAGS))
    expected = weights(arena.folder / "whole")
    for number in range(arena.rounds):
        folder = arena.folder / str(number)
        seconds = arena.chance.uniform(0, 12)
        process = start(*command, "--work-dir", folder, *FLAGS)
        while process.poll() is None and len(processes(folder, "--launcher")) < 3:
            time.sleep(0.1)  # it checks first; then there are a launcher and two ranks
        kill_after(process, seconds)
        left = living(folder)
        code, output = finish(start(*command, "--work-dir", folder, *FLAGS))
        held = not left and code == 0 and equal(weights(folder), expected)
        seen = f"processes left: {left}\n{output}"
        yield Trial(f"killed {seconds:.1f} s after the ranks began", held, seen)


def living(folder: Path, patience: float = 60) -> list[int]:
    """Processes that still have ``folder`` on their command line after a while.

    One that has not got further than its imports ends when it has.
    """
    end = time.monotonic() + patience
    while (found := processes(folder)) and time.monotonic() < end:
        time.sleep(0.1)
    return found


def processes(*words: str | Path) -> list[int]:
    """Numbers of the processes that have all ``words`` on their command line."""
    wanted = [os.fsencode(word) for word in words]
    return [
        int(file.parent.name)
        for file in Path("/proc").glob("[0-9]*/cmdline")
        if all(word in command_line(file) for word in wanted)
    ]


def command_line(file: Path) -> bytes:
    """Of a process; empty if it has ended."""
    try:
        return file.read_bytes()
    except OSError:
        return b""


@attack("a full disk ends a training in one line and keeps the last checkpoint")
def full_disk(arena: Arena) -> Iterator[Trial]:
    """On a small tmpfs where one may be mounted, else under a limit of file size."""
    folder = arena.folder / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        limited = f"ulimit -f 200; exec {' '.join(TRAIN)} --work-dir {folder / 'run'}"
        code, output = finish(start("bash", "-c", f"{limited} {' '.join(FLAGS)}"))
        yield told("files of at most 200 blocks", code, output, folder / "run", False)
        return
    try:
        command = [*TRAIN, "--work-dir", folder / "run"]
        endless = [
            flag.replace("max_keep_ckpts=1", "max_keep_ckpts=99") for flag in FLAGS
        ]
        endless[1] = "train_cfg.max_epochs=30"
        code, output = finish(start(*command, *endless))
        yield told(f"a tmpfs of {DISK}", code, output, folder / "run", True)
    finally:
        subprocess.run(["umount", str(folder)], check=False)


def told(what: str, code: int, output: str, folder: Path, some: bool) -> Trial:
    """Whether a run on a full disk ended well; ``some`` checkpoints had room."""
    whole = newest(folder.glob("*.pth"))
    parts = list(folder.rglob(".*.tmp"))
    held = code == 1 and not whole.damaged and not parts
    held = held and (whole.path is not None) == some
    return Trial(what, held and "Traceback" not in output, output)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """Those after the last epoch; none if it was not reached."""
    path = folder / f"epoch_{EPOCHS}.pth"
    if not path.is_file():
        return {}
    state = load_state_dict(path)
    return state


def equal(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    """Whether they are the same to the last bit, and there are any."""
    return bool(one) and all(torch.equal(one[name], other[name]) for name in other)
