"""Attack the promises of docs/reliability.md, and say which held.

    python tools/chaos.py                    # all attacks: minutes
    python tools/chaos.py executed-code      # some of them
    python tools/chaos.py --list

Writes table.md to --out. Exit status 1 if something did not survive.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from varcon_plugin.commands.attacks import (  # noqa: F401  to register
    checkpoints,
    damage,
    durability,
    experiments,
    images,
    losses,
)
from varcon_plugin.commands.attacks.registry import ATTACKS, Arena, Attack, Trial
from varcon_plugin.evaluation.report import markdown_table

__all__ = ["Outcome", "main", "run_attack"]


class Outcome(NamedTuple):
    """What became of an attack.

    Attributes:
        attack: that was run.
        trials: all of them.
        seconds: it took.
    """

    attack: Attack
    trials: Sequence[Trial]
    seconds: float

    @property
    def failed(self) -> list[Trial]:
        """What did not survive."""
        return [trial for trial in self.trials if not trial.survived]


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("names", nargs="*", metavar="ATTACK", help="default: all")
    add("--list", action="store_true", help="the attacks and the promises they test")
    add("--rounds", type=int, default=10, help="of what is random, such as kills")
    add("--seed", type=int, default=0)
    add("--out", type=Path, default=Path("work_dirs/chaos"))
    args = parser.parse_args(argv)
    unknown = sorted(set(args.names) - set(ATTACKS))
    if unknown:
        parser.error(f"no attack {', '.join(unknown)}; there are {', '.join(ATTACKS)}")
    return args


def main(argv: list[str] | None = None) -> None:
    """Run the attacks, write the table."""
    args = parse_args(argv)
    if args.list:
        for attack in ATTACKS.values():
            print(f"{attack.name:24} {attack.promise}")
        return
    outcomes = []
    with Progress(
        SpinnerColumn(),
        TextColumn(
            "{task.fields[attack]}  {task.completed:.0f} tried: {task.fields[now]}"
        ),
        TimeElapsedColumn(),
        transient=True,
    ) as progress:
        for name in args.names or ATTACKS:
            arena = Arena(
                (args.out / name).resolve(), args.rounds, random.Random(args.seed)
            )
            outcomes.append(run_attack(ATTACKS[name], arena, progress))
    text = table(outcomes)
    args.out.mkdir(parents=True, exist_ok=True)
    (args.out / "table.md").write_text(text)
    print(text + f"\nTable: {args.out / 'table.md'}")
    sys.exit(any(outcome.failed for outcome in outcomes))


def run_attack(attack: Attack, arena: Arena, progress: Progress) -> Outcome:
    """Run an attack in an emptied folder; if it breaks down, that is a failure too."""
    shutil.rmtree(arena.folder, ignore_errors=True)
    arena.folder.mkdir(parents=True)
    task = progress.add_task("", total=None, attack=attack.name, now="...")
    trials: list[Trial] = []
    start = time.monotonic()
    try:
        for trial in attack.run(arena):
            trials.append(trial)
            progress.update(task, advance=1, now=trial.what)
            if not trial.survived:
                progress.console.print(f"{attack.name}: {trial.what} DID NOT SURVIVE")
    except Exception:
        seen = traceback.format_exc()
        trials.append(Trial("the attack itself, to its end", survived=False, seen=seen))
    progress.remove_task(task)
    return Outcome(attack, trials, time.monotonic() - start)


def table(outcomes: Sequence[Outcome]) -> str:
    """Tried and survived, then what was seen of the rest."""
    rows = [
        [
            f"{outcome.attack.promise} (`{outcome.attack.name}`)",
            str(len(outcome.trials)),
            str(len(outcome.trials) - len(outcome.failed)),
            f"{outcome.seconds:.0f}",
        ]
        for outcome in outcomes
    ]
    text = markdown_table(["promise (attack)", "tried", "survived", "s"], rows)
    for outcome in outcomes:
        for trial in outcome.failed:
            text += f"\n{outcome.attack.name}, {trial.what}: did not survive\n"
            text += "".join(f"    {line}\n" for line in trial.seen.splitlines()[-20:])
    return text.rstrip() + "\n"
