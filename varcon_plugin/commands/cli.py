"""The command ``varcon``: one name in front of what the scripts in ``tools/`` do."""

from __future__ import annotations

import argparse
import importlib
import sys
from collections.abc import Callable

import varcon_plugin
from varcon_plugin.commands.noise import quiet_start

__all__ = ["main"]

COMMANDS = {  # module below this package, and what it does
    "train": ("train", "train a recipe through mmpretrain, on GPUs or on the CPU"),
    "test": ("test", "test a model on the test set of its config"),
    "train-lightly": ("train_lightly", "train with lightly"),
    "evaluate": ("evaluate", "judge a frozen encoder: k-NN, linear, few-shot, ..."),
    "compare": ("compare", "put reports of evaluate side by side"),
    "experiment": ("experiment", "run a declared grid of losses x settings x seeds"),
    "self-supervised": ("self_supervised", "compare methods that need no labels"),
    "evidence": ("evidence", "write the tables of docs/evidence.md from results"),
    "convert": ("convert", "carry weights to torchvision, timm, safetensors, the Hub"),
    "plot": ("plot", "draw what the diagnostics recorded"),
    "browse": ("browse", "draw the views that a model sees"),
    "imagenet100": ("imagenet100", "make ImageNet-100 of ImageNet-1K"),
    "quickstart": ("quickstart", "train on handwritten digits and judge the result"),
    "benchmark": ("benchmark", "measure speed and memory, side by side"),
    "chaos": ("chaos", "attack the promises of docs/reliability.md"),
    "doctor": ("doctor", "versions, devices, what is fast and what is missing"),
}


def main(argv: list[str] | None = None) -> None:
    """Run one of the commands on the rest of the command line."""
    parser = argparse.ArgumentParser(
        prog="varcon",
        description="Variational Supervised Contrastive Learning.",
        epilog=listing(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    version = f"varcon-plugin {varcon_plugin.__version__}"
    parser.add_argument("--version", action="version", version=version)
    parser.add_argument("command", choices=COMMANDS, metavar="COMMAND")
    parser.add_argument(
        "arguments", nargs=argparse.REMAINDER, help="COMMAND --help lists them"
    )
    args = parser.parse_args(argv)
    run_command(f"varcon {args.command}", COMMANDS[args.command][0], args.arguments)


def listing() -> str:
    """The commands, a line each."""
    lines = (f"  {name:14} {what}" for name, (_, what) in COMMANDS.items())
    return "\n".join(["commands:", *lines])


def run_command(prog: str, module: str, arguments: list[str]) -> None:
    """Call ``main`` of a module of this package as if ``prog`` were a script.

    Raises:
        SystemExit: a package is missing; says which extra brings it.
    """
    sys.argv = [prog, *arguments]
    try:
        with quiet_start():
            found = importlib.import_module(f"varcon_plugin.commands.{module}")
    except ModuleNotFoundError as error:
        if (error.name or "").startswith("varcon_plugin"):
            raise
        sys.exit(
            f"{prog}: {error.name} is not installed; "
            'pip install "varcon-plugin[all]" brings everything'
        )
    run: Callable[[], None] = found.main
    run()
