"""Train a recipe: mmpretrain's tools/train.py and its flags, on GPUs or on the CPU.

    varcon train varcon_r50_imagenet --gpus 8 [flags]
    varcon train my_config.py [flags]

The first argument is a path or the name of a recipe. --gpus N starts N processes (on
the CPU where there is no GPU). All other flags are those of tools/train.py; --check
only checks.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from varcon_plugin.commands.messages import fail
from varcon_plugin.commands.noise import quiet_start
from varcon_plugin.commands.places import project_root, recipe_path

__all__ = ["launch", "main"]


def main() -> None:
    """Train what the command line names."""
    launch("train", __doc__)


def launch(name: str, description: str) -> None:
    """Run mmpretrain's ``tools/<name>.py`` in this process, or one process a GPU.

    Args:
        name: ``"train"`` or ``"test"``.
        description: for ``--help``, before the script's own.
    """
    first, *others = sys.argv[1:] or ["--help"]
    if first.startswith("-") or {"-h", "--help"} & {*others}:  # or a mistake
        print(description)
        first, others = "--help", []
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--gpus", type=int, default=1)
    args, others = parser.parse_known_args(others)
    try:
        rest = [first if first == "--help" else str(recipe_path(first)), *others]
    except FileNotFoundError as error:
        fail(error)
    if args.gpus > 1:
        script = project_root() / "tools" / f"dist_{name}.sh"
        several_processes(script, name, args.gpus, rest)
    sys.argv[1:] = rest
    with quiet_start():
        from varcon_plugin.mmpretrain.launch import main as run

    run(name)


def several_processes(script: Path, name: str, gpus: int, rest: list[str]) -> None:
    """Become the launcher of ``gpus`` processes, with this interpreter's torchrun."""
    positional = 2 if name == "test" else 1  # the number of GPUs follows them
    command = ["bash", str(script), *rest[:positional], str(gpus), *rest[positional:]]
    own = Path(sys.executable).parent
    path = f"{own}{os.pathsep}{os.environ.get('PATH', '')}"
    os.execvpe("bash", command, {**os.environ, "PATH": path})
