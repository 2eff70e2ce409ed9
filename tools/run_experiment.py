"""Run an experiment of the paper: a declared grid of losses x settings x seeds.

    python tools/run_experiment.py batch-size | temperature | convergence | small-batch
    python tools/run_experiment.py convergence --data FOLDER --epochs 20 --seeds 0 1 2
    python tools/run_experiment.py batch-size --recipe r50_cifar100     # on GPUs

Without --recipe it trains small networks: on scikit-learn's digits, or on the images of
FOLDER/train/CLASS/* and FOLDER/test/CLASS/*. Started again, it goes on where it
stopped. Writes table.md, table.csv, results.json and plot.png to --out.
"""

from __future__ import annotations

import argparse
import platform
import sys
from pathlib import Path

import torch
from mmengine.logging import MMLogger
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TimeRemainingColumn

from varcon_plugin.experiments.grid import EXPERIMENTS, LARGE, SMALL, cells
from varcon_plugin.experiments.run import CellError, Place, read_data, run_cell
from varcon_plugin.experiments.summary import summarise, write_summary

ROOT = Path(__file__).resolve().parents[1]
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
    add("--processes", type=int, default=max(1, gpus), help="default: one a GPU")
    args = parser.parse_args(argv)
    args.recipe = args.recipe or (FOLDER if args.data else DIGITS)
    args.out = args.out or Path("work_dirs") / f"{args.experiment}_{args.recipe}"
    return args


def main(argv: list[str] | None = None) -> None:
    """Run what is not there yet, then write the summary."""
    args = parse_args(argv)
    small = args.recipe in (DIGITS, FOLDER)
    experiment = EXPERIMENTS[args.experiment][SMALL if small else LARGE]
    device = "cuda" if torch.cuda.is_available() else "cpu"
    place = Place(
        root=ROOT,
        recipe=args.recipe,
        out=args.out.resolve(),
        data=args.data.resolve() if args.data else None,
        epochs=args.epochs,
        processes=args.processes,
        points=experiment.points,
        device=device,
    )
    if not MMLogger.check_instance_created("run_experiment"):
        MMLogger.get_instance("run_experiment", log_level="WARNING")
    results = []
    try:
        grid = cells(experiment, args.seeds, args.settings)
        data = read_data(place)
        with Progress(
            "{task.description}",
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            transient=True,
        ) as progress:
            task = progress.add_task("", total=len(grid))
            for cell in grid:
                progress.update(task, description=cell.name)
                results.append(run_cell(cell, place, data))
                progress.advance(task)
    except (CellError, ValueError, FileNotFoundError) as error:
        sys.exit(f"run_experiment.py: {error}")
    except KeyboardInterrupt:
        sys.exit("run_experiment.py: interrupted; the same command goes on from here")
    where = f"{platform.machine()}, {place.processes} process(es) on {device}"
    about = (
        f"Recipe `{place.recipe}` on {data.name} ({len(data.train.items):,} training, "
        f"{len(data.test.items):,} test images, {len(data.test.classes)} classes), "
        f"{results[0]['curve'][-1][0]} epochs; {where}, torch {torch.__version__}."
    )
    summary = summarise(results, args.level)
    print(write_summary(args.experiment, experiment, summary, about, place.out))
    print(f"\nTable and picture: {args.out / 'table.md'}, {args.out / 'plot.png'}")


if __name__ == "__main__":
    main()
