"""Experiments that are killed, and run again at once."""

from __future__ import annotations

from collections.abc import Iterator

from varcon_plugin.commands.attacks.registry import (
    Arena,
    Trial,
    attack,
    finish,
    kill_after,
    start,
)

__all__ = ["killed_experiment"]


@attack("an experiment that is killed goes on when it is run again")
def killed_experiment(arena: Arena) -> Iterator[Trial]:
    """SIGKILL for the command alone, while a cell imports, trains or is evaluated."""
    for number in range(arena.rounds):
        out = arena.folder / str(number)
        command = ["python", "tools/run_experiment.py", "batch-size", "--out", out]
        command += ["--settings", 256, "--seeds", 0, "--methods", "VarCon"]
        command += ["--epochs", 3]
        seconds = arena.chance.uniform(4, 16)
        kill_after(start(*command), seconds)
        code, output = finish(start(*command))
        held = code == 0 and (out / "table.md").is_file()
        yield Trial(f"killed after {seconds:.1f} s", held, output)
