"""Measure speed and memory, side by side in one run: varcon benchmark NAME [flags]."""

from __future__ import annotations

import argparse
import pkgutil

from varcon_plugin.commands import benchmarks
from varcon_plugin.commands.cli import run_command

__all__ = ["main"]

HELPERS = ("report", "training_run")  # no benchmarks of their own


def main() -> None:
    """Run the benchmark that the command line names."""
    names = [
        module.name
        for module in pkgutil.iter_modules(benchmarks.__path__)
        if module.name not in HELPERS
    ]
    parser = argparse.ArgumentParser(prog="varcon benchmark", description=__doc__)
    parser.add_argument("name", choices=names)
    parser.add_argument("arguments", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    prog = f"varcon benchmark {args.name}"
    run_command(prog, f"benchmarks.{args.name}", args.arguments)
