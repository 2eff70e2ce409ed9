"""Images a second of training, end to end, and where the time of a step goes.

    varcon benchmark train varcon_r18_image_folder --data FOLDER

FOLDER/train/<class>/* are the images. The recipe is run by mmengine with all its hooks,
and in the same rounds, each in a process of its own, so are two rivals at the same
network, crop size, batch and images: mmpretrain's SimCLR recipe with its pipeline on
the CPU, and lightly's SimCLR with its transform under Lightning. Rivals have a data
worker for each core. ``--also`` adds further recipes; ``--plain`` the same one without
what this package does for its speed: float32, contiguous, and flip, colour jitter and
grayscale by mmpretrain in the recipe's workers. Writes report.md, .json and .png.

On a GPU each round runs twice: for images a second as is, and for the parts with a
synchronisation at each border.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress

from varcon_plugin.commands.benchmarks.report import machine, row
from varcon_plugin.commands.benchmarks.training_run import PARTS
from varcon_plugin.commands.messages import fail
from varcon_plugin.commands.places import recipe_path

__all__ = ["main"]

RUN = "varcon_plugin.commands.benchmarks.training_run"
Contestant = tuple[str, Path]  # what to run, and the recipe that it is or goes by
Record = dict[str, Any]


def main() -> None:
    """Measure and report."""
    args = parse_args()
    try:
        contestants = choose(args)
    except FileNotFoundError as error:
        fail(error)
    if not (args.data / "train").is_dir():
        fail(f"no folder {args.data / 'train'}: expected {args.data}/train/<class>/*")
    console, gpu = Console(width=100), torch.cuda.is_available()
    records: dict[str, list[Record]] = {name: [] for name in contestants}
    modes = (False, True) if gpu else (False,)
    with Progress(console=console) as progress:
        total = args.rounds * len(contestants) * len(modes)
        task = progress.add_task("training", total=total)
        for _ in range(args.rounds):
            for name, contestant in contestants.items():
                progress.update(task, description=name)
                runs = [measure(contestant, args, mode) for mode in modes]
                records[name].append({**runs[0], "parts": runs[-1]["parts"]})
                progress.advance(task, len(modes))
    args.out.mkdir(parents=True, exist_ok=True)
    setting = {"command": ["varcon", "benchmark", "train", *sys.argv[1:]]}
    (args.out / "report.json").write_text(json.dumps(setting | records, indent=2))
    text = report(records, "cuda" if gpu else "cpu")
    (args.out / "report.md").write_text(text)
    draw(records, args.out / "report.png")
    print(text)
    console.print(f"Look at {args.out}/report.md and report.png", highlight=False)


def parse_args() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("config", help="a recipe: a path or a name")
    add("--data", type=Path, required=True, help="folder with train/<class>/*")
    add("--also", nargs="*", default=[], help="further recipes")
    add("--rivals", nargs="*", default=["mmpretrain", "lightly"])
    add("--plain", action="store_true", help="the recipe without its speed, too")
    add("--batch", type=int, help="images; the recipe's by default")
    add("--steps", type=int, default=30, help="that are timed, in each round")
    add("--warm-up", type=int, default=8, help="steps before")
    add("--rounds", type=int, default=3)
    add("--out", type=Path, default=Path("work_dirs/benchmark_train"))
    args = parser.parse_args()
    for rival in args.rivals:
        if rival not in ("mmpretrain", "lightly"):
            parser.error(f"--rivals are mmpretrain and lightly, got {rival}")
    return args


def choose(args: argparse.Namespace) -> dict[str, Contestant]:
    """Who runs, by the name in the report."""
    recipe = recipe_path(args.config)
    chosen = {f"VarCon, {recipe.stem}": ("recipe", recipe)}
    for name in args.also:
        path = recipe_path(name)
        chosen[f"{path.stem} ({path.parent})"] = ("recipe", path)
    if args.plain:
        chosen["the same in float32, mmpretrain's pipeline"] = ("plain", recipe)
    for rival in args.rivals:
        chosen[f"SimCLR, {rival}"] = (rival, recipe)
    return chosen


def measure(
    contestant: Contestant, args: argparse.Namespace, synchronise: bool
) -> Record:
    """One run in a process of its own.

    Raises:
        SystemExit: it failed; the end of what it said is in the message.
    """
    kind, config = contestant
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "record.json"
        command = [sys.executable, "-m", RUN, kind, str(config), str(out)]
        command += ["--data", str(args.data), "--steps", str(args.steps)]
        command += ["--warm-up", str(args.warm_up)]
        command += ["--batch", str(args.batch)] if args.batch else []
        command += ["--synchronise"] if synchronise else []
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode or not out.exists():
            raise SystemExit(f"{kind} {config} failed:\n{done.stderr[-3000:]}")
        record: Record = json.loads(out.read_text())
    return record


def rate(records: list[Record]) -> float:
    """Images a second, the median over rounds."""
    each: list[float] = [r["images"] / r["seconds"] for r in records]
    return statistics.median(each)


def milliseconds(records: list[Record], part: str) -> float:
    """For each image, the median over rounds."""
    each: list[float] = [1e3 * r["parts"][part] / r["images"] for r in records]
    return statistics.median(each)


def report(records: dict[str, list[Record]], device: str) -> str:
    """The table, as Markdown."""
    first = next(iter(records.values()))
    lines = [
        "# Training, end to end",
        "",
        f"{machine(device)}, {os.cpu_count()} cores.",
        "Median over the rounds (lowest to highest); ratios within a round.",
        "",
        row("", "images / s", "x slower than the first", *PARTS),
        row("---", *["---:"] * (2 + len(PARTS))),
    ]
    for name, runs in records.items():
        each = sorted(r["images"] / r["seconds"] for r in runs)
        ratios = [
            (a["images"] / a["seconds"]) / (b["images"] / b["seconds"])
            for a, b in zip(first, runs, strict=True)
        ]
        lines.append(
            row(
                name,
                f"{rate(runs):,.0f} ({each[0]:,.0f} to {each[-1]:,.0f})",
                f"{statistics.median(ratios):.2f}",
                *(f"{milliseconds(runs, part):.2f}" for part in PARTS),
            )
        )
    lines += ["", "Parts in milliseconds for each image, of the training process.", ""]
    return "\n".join(lines)


def draw(records: dict[str, list[Record]], path: Path) -> None:
    """Stacked bars: milliseconds an image by part."""
    figure = Figure(figsize=(10, 1.2 + 0.6 * len(records)), layout="constrained")
    axis = figure.subplots()
    names = list(records)[::-1]
    left = [0.0] * len(names)
    for part in PARTS:
        widths = [milliseconds(records[name], part) for name in names]
        axis.barh(names, widths, left=left, label=part)
        left = [a + b for a, b in zip(left, widths, strict=True)]
    for name, end in zip(names, left, strict=True):
        text = f"  {rate(records[name]):,.0f} images / s"
        axis.text(end, names.index(name), text, va="center", fontsize=9)
    axis.set_xlabel("milliseconds an image, of the training process")
    axis.set_xlim(0, 1.25 * max(left))
    axis.legend(ncols=4, fontsize=8, loc="lower center", bbox_to_anchor=(0.5, 1.0))
    figure.savefig(path, dpi=120)


if __name__ == "__main__":
    main()
