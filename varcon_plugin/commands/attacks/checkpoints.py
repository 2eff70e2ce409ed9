"""Checkpoints of an attacker, at every entry."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path

from varcon_plugin.commands.attacks.entries import ENTRIES, Entry, whole_checkpoint
from varcon_plugin.commands.attacks.payloads import PAYLOADS, REFUSED, write_hostile
from varcon_plugin.commands.attacks.registry import Arena, Trial, attack, finish, start

__all__ = ["executed_code", "hostile_run", "resisted"]

content = functools.cache(whole_checkpoint)


@attack("nothing that a checkpoint holds is executed")
def executed_code(arena: Arena) -> Iterator[Trial]:
    """Each payload at each entry; a refusal is one line that names the file."""
    for number, (way, entry) in enumerate(ENTRIES.items()):
        for payload in PAYLOADS:
            folder = arena.folder / f"{number}_{payload.replace(' ', '_')}"
            output, executed = hostile_run(entry, payload, folder)
            held = not executed and resisted(entry, payload, *output)
            yield Trial(f"{payload} at {way}", held, output[1])


def hostile_run(
    entry: Entry, payload: str, folder: Path
) -> tuple[tuple[int, str], bool]:
    """Exit status and output of a command that is given a hostile checkpoint.

    And whether code of the checkpoint was executed.
    """
    run = folder / "run"
    run.mkdir(parents=True)
    checkpoint, marker = folder / "hostile.pth", folder / "executed"
    write_hostile(payload, content(entry.config), checkpoint, marker)
    ended = finish(start(*entry.command(checkpoint, run)))
    return ended, marker.exists()


def resisted(entry: Entry, payload: str, code: int, output: str) -> bool:
    """Whether a command refused the checkpoint in one line, or did its work.

    One that failed before it read the checkpoint has proved nothing.
    """
    if payload not in REFUSED:
        return code == 0
    told = "Traceback" not in output and ".py: " in output
    return code != 0 and "it holds " in output and (told or not entry.in_one_line)
