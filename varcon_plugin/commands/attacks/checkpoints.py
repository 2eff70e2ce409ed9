"""Checkpoints of an attacker, at every entry."""

from __future__ import annotations

from collections.abc import Iterator

from varcon_plugin.commands.attacks.entries import ENTRIES, whole_checkpoint
from varcon_plugin.commands.attacks.payloads import PAYLOADS, write_hostile
from varcon_plugin.commands.attacks.registry import Arena, Trial, attack, finish, start

__all__ = ["executed_code"]


@attack("nothing that a checkpoint holds is executed")
def executed_code(arena: Arena) -> Iterator[Trial]:
    """Each payload at each entry; a refusal is one line that names the file."""
    contents = {
        config: whole_checkpoint(config)
        for config in {entry.config for entry in ENTRIES.values()}
    }
    for number, (way, entry) in enumerate(ENTRIES.items()):
        for payload in PAYLOADS:
            folder = arena.folder / f"{number}_{payload.replace(' ', '_')}"
            run = folder / "run"
            run.mkdir(parents=True)
            checkpoint, marker = folder / "hostile.pth", folder / "executed"
            write_hostile(payload, contents[entry.config], checkpoint, marker)
            code, output = finish(start(*entry.command(checkpoint, run)))
            held = not marker.exists()
            if code and entry.in_one_line:
                held = held and is_one_line(output)
            yield Trial(f"{payload} at {way}", held, output)


def is_one_line(output: str) -> bool:
    """Whether a failed command said why without a traceback."""
    return "Traceback" not in output and ".py: " in output
