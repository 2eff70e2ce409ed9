"""Run an experiment of the paper: a declared grid of losses x settings x seeds.

    python tools/run_experiment.py losses | gradient | temperature | convergence
    python tools/run_experiment.py batch-size | small-batch
    python tools/run_experiment.py losses --recipe speedrun_cifar100 --data FOLDER
    python tools/run_experiment.py convergence --data FOLDER --epochs 20 --seeds 0 1 2
    python tools/run_experiment.py batch-size --recipe r50_cifar100     # on GPUs

Without --recipe it trains small networks: on scikit-learn's digits, or on the images of
FOLDER/train/CLASS/* and FOLDER/test/CLASS/*. Started again, it goes on where it
stopped. Writes table.md, table.csv, results.json and plot.png to --out.

--learning-rates 0.3 1 3 chooses, for each method at each setting, the best of these
factors on the recipe's rate. A fifth of the training images of each class is held out
for that; the best k-NN accuracy on them, of one run on the others (the first seed,
classes weighing the same), wins. Test images are not looked at.

--imbalance 100 makes the training set long-tailed: the number of images falls
exponentially over the classes, in the order of their names, to a hundredth. Accuracies
are then given also for the third of the classes with most images and with fewest. The
test set stays as it is; k-NN and linear classifier see the long-tailed images alone.
"""

from __future__ import annotations

import argparse
import platform
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from mmengine.logging import MMLogger
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from varcon_plugin.commands.messages import fail
from varcon_plugin.commands.places import project_root
from varcon_plugin.experiments.evidence import keep
from varcon_plugin.experiments.grid import EXPERIMENTS, LARGE, SMALL, Cell, cells
from varcon_plugin.experiments.recipe import Place
from varcon_plugin.experiments.run import CellError, read_data, run_cells
from varcon_plugin.experiments.subsets import hold_out, take
from varcon_plugin.experiments.summary import summarise, write_summary

DIGITS, FOLDER = "r18_digits", "r18_image_folder"


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    gpus = torch.cuda.device_count()
    add = parser.add_argument
    add("experiment", choices=EXPERIMENTS)
    add("--out", type=Path, help="default: work_dirs/EXPERIMENT_RECIPE")
    add("--recipe", help="configs/varcon_RECIPE.py and its baselines")
    add("--data", type=Path, help="folder of images")
    add("--seeds", type=int, nargs="+", default=[0, 1, 2])
    add("--epochs", type=int, help="default: the recipe's")
    add("--settings", type=float, nargs="+", help="batch sizes, or epsilons; a part")
    add("--level", type=float, help="k-NN top-1 to reach; default: 95 %% of the best")
    add("--learning-rates", type=float, nargs="+", help="factors to choose from")
    add("--trial-epochs", type=int, help="of the runs to choose by; default: --epochs")
    add("--images-per-class", type=int, help="of --data, for training; default: all")
    add("--imbalance", type=float, default=1.0, help="default: 1, as they are")
    add("--methods", nargs="+", help="a part, by their names")
    add("--keep", type=Path, help="JSON file for the numbers alone, to be committed")
    add("--jobs", type=int, default=1, help="cells at once, sharing the cores")
    add("--processes", type=int, default=max(1, gpus), help="default: one a GPU")
    args = parser.parse_args(argv)
    subset = args.images_per_class or args.imbalance != 1 or args.learning_rates
    if subset and not args.data:
        parser.error(
            "--images-per-class, --imbalance and --learning-rates make training sets "
            "of a folder of images: give --data"
        )
    args.recipe = args.recipe or (FOLDER if args.data else DIGITS)
    args.out = args.out or Path("work_dirs") / f"{args.experiment}_{args.recipe}"
    return args


def main(argv: list[str] | None = None) -> None:
    """Run what is not there yet, then write the summary."""
    args = parse_args(argv)
    small = any(name in args.recipe for name in ("digits", "image_folder", "speedrun"))
    experiment = EXPERIMENTS[args.experiment][SMALL if small else LARGE]
    place = Place(
        root=project_root(),
        recipe=args.recipe,
        out=args.out.resolve(),
        data=args.data.resolve() if args.data else None,
        epochs=args.epochs,
        processes=args.processes,
        points=experiment.points,
        regularisations=experiment.regularisations,
        device="cuda" if torch.cuda.is_available() else "cpu",
        jobs=args.jobs,
    )
    if not MMLogger.check_instance_created("run_experiment"):
        MMLogger.get_instance("run_experiment", log_level="WARNING")
    try:
        grid = cells(experiment, args.seeds, args.settings, args.methods)
        choosing = None
        if args.learning_rates and place.data:
            out = place.out / "choosing"
            part = hold_out(place.data, out / "held_out")
            choosing = replace(
                place,
                data=subset(args, part, out),
                out=out,
                epochs=args.trial_epochs or args.epochs,
            )
        if place.data:
            place = replace(place, data=subset(args, place.data, place.out))
        with Progress(
            "{task.description}",
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            transient=True,
        ) as progress:
            if choosing:
                grid = tuned(grid, args.learning_rates, choosing, progress)
            results = run_all("grid", grid, place, progress)
    except (CellError, ValueError, FileNotFoundError) as error:
        fail(error)
    except KeyboardInterrupt:
        fail("interrupted; the same command goes on from here")
    summary = summarise(results, args.level)
    about = describe(args, place, results)
    if args.keep:
        keep(args.keep, about, experiment.axis, results)
    print(write_summary(args.experiment, experiment, summary, about, place.out))
    print(f"\nTable and picture: {args.out / 'table.md'}, {args.out / 'plot.png'}")


def subset(args: argparse.Namespace, source: Path, out: Path) -> Path:
    """The part of ``source`` that is asked for; itself, if that is all of it."""
    if args.images_per_class is None and args.imbalance == 1:
        return source
    return take(source, out / "data", args.images_per_class, args.imbalance)


def run_all(
    title: str, grid: Sequence[Cell], place: Place, progress: Progress
) -> list[dict[str, Any]]:
    """Results of ``grid``, in its order."""
    task = progress.add_task(title, total=len(grid))
    results = dict(progress.track(run_cells(grid, place), task_id=task))
    return [results[cell.name] for cell in grid]


def tuned(
    grid: Sequence[Cell], factors: Sequence[float], place: Place, progress: Progress
) -> list[Cell]:
    """``grid`` with the best learning rates, the lower one of equals."""
    first = [cell for cell in grid if cell.seed == grid[0].seed]
    trials = [replace(cell, learning_rate=f) for cell in first for f in factors]
    place = replace(place, linear=False)
    results = run_all("learning rates", trials, place, progress)
    results.sort(key=lambda trial: (trial["per_class"], -trial["learning_rate"]))
    best = {  # the last of a row stays
        (trial["method"], trial["setting"]): trial["learning_rate"] for trial in results
    }
    return [
        replace(cell, learning_rate=best[cell.method.name, cell.setting])
        for cell in grid
    ]


def describe(
    args: argparse.Namespace, place: Place, results: Sequence[dict[str, Any]]
) -> str:
    """Where the numbers come from."""
    data = read_data(place)
    device = f"{place.processes} process(es) on {place.device}"
    about = (
        f"Recipe `{place.recipe}` on {args.data.name if args.data else data.name} "
        f"({len(data.train.items):,} training, {len(data.test.items):,} test images, "
        f"{len(data.test.classes)} classes), {results[0]['curve'][-1][0]} epochs; "
        f"{platform.machine()}, {device}, torch {torch.__version__}."
    )
    if args.imbalance != 1:
        counts = data.train.labels.bincount()
        about += (
            f" Long-tailed: {counts.max()} to {counts.min()} training images a class; "
            "frequent and rare are the thirds of the classes with most and fewest."
        )
    if args.learning_rates:
        factors = ", ".join(f"{f:g}" for f in args.learning_rates)
        about += (
            f" Learning rate: the best of {factors} times the recipe's, linear in "
            "the batch size; chosen for each row on held-out training images, by a run "
            f"of {args.trial_epochs or results[0]['curve'][-1][0]} epochs."
        )
    return about
