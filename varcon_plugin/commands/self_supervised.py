"""Compare methods that learn without labels, on a folder of small images.

python tools/self_supervised.py --data DATA --out FOLDER

DATA/{train,test}/CLASS/*.png, 32 x 32. The labels serve evaluation and the supervised
ceiling alone. For each method the learning rate is chosen on training images that are
held out of everything else; then every seed is trained at every batch size, and the
last epoch counts. One JSON file a run in FOLDER; runs that are there are not repeated,
so an interrupted study goes on. At the end FOLDER/table.md and FOLDER/curves.png, with
--pictures also a t-SNE and a page of images by latent class.

Where many processes share a CPU, memory that glibc keeps makes steps twice as fast:
MALLOC_MMAP_THRESHOLD_=4294967296 MALLOC_TRIM_THRESHOLD_=8589934592
"""

from __future__ import annotations

import argparse
import json
import math
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from varcon_plugin.evaluation.images import Images, Splits, read_rgb
from varcon_plugin.evaluation.sources import folder
from varcon_plugin.experiments.self_supervised import METHODS, Cell, Setting
from varcon_plugin.experiments.self_supervised_pictures import draw_pictures
from varcon_plugin.experiments.self_supervised_run import Pixels, Run
from varcon_plugin.experiments.self_supervised_summary import write_summary

MAIN = tuple(METHODS)[:6]
CHOOSING_SEED = 1000


def main(argv: list[str] | None = None) -> None:
    """Choose learning rates, train what is missing, and write the table."""
    args = parse(argv)
    if args.pictures and args.pictures not in args.methods:
        raise SystemExit(f"--pictures must be one of --methods, got {args.pictures}")
    args.out.mkdir(parents=True, exist_ok=True)
    splits = folder(args.data)
    fewest = args.images + args.held_out
    if len(splits.train.items) < fewest:
        raise SystemExit(
            f"--images and --held-out need {fewest} training images, "
            f"{args.data} has {len(splits.train.items)}"
        )
    pixels, held_out = read(splits, args.images, args.held_out)
    thirds = (math.ceil(args.epochs / 3), math.ceil(2 * args.epochs / 3), args.epochs)
    setting = Setting(images=args.images, epochs=args.epochs, points=thirds)
    rates = {
        name: choose(name, setting, held_out, args)
        for name in dict.fromkeys(
            METHODS[name].chosen_as or name for name in args.methods
        )
    }

    def cell(name: str, batch_size: int, seed: int) -> Cell:
        rate = rates[METHODS[name].chosen_as or name]
        rate *= (batch_size / args.choose_at) ** 0.5
        return Cell(name, replace(setting, batch_size=batch_size), rate, seed)

    for seed in args.seeds:
        for batch_size in args.batch_sizes:
            for name in args.methods:
                done(cell(name, batch_size, seed), pixels, args.out)
    results = [json.loads(file.read_text()) for file in args.out.glob("run_*.json")]
    print(write_summary(results, args.out))
    if args.pictures:
        first = cell(args.pictures, min(args.batch_sizes), args.seeds[0])
        run = Run(first, pixels)
        run.result()
        draw_pictures(run, splits.test.classes, args.out)


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, required=True, metavar="FOLDER")
    add("--out", type=Path, required=True, metavar="FOLDER")
    add("--methods", nargs="+", default=MAIN, choices=METHODS, metavar="NAME")
    add("--seeds", nargs="+", type=int, default=(0, 1, 2))
    add("--batch-sizes", nargs="+", type=int, default=(512, 128))
    add("--images", type=int, default=Setting.images)
    add("--epochs", type=int, default=Setting.epochs)
    add("--rates", nargs="+", type=float, default=(0.1, 0.2, 0.4))
    add(
        "--choose-at",
        type=int,
        default=512,
        help="batch size; rates of others go with its square root",
    )
    add("--choose-epochs", type=int, default=3)
    add(
        "--pictures",
        choices=METHODS,
        metavar="NAME",
        help="of --methods: train it once more, at the smallest batch size, and draw",
    )
    add("--held-out", type=int, default=2000, help="training images to choose on")
    return parser.parse_args(argv)


def read(splits: Splits, images: int, held_out: int) -> tuple[Pixels, Pixels]:
    """The images to train and test on, and the same with held-out ones for the test."""
    order = torch.randperm(
        len(splits.train.items), generator=torch.Generator().manual_seed(0)
    )
    train, labels = decoded(splits.train, order[: images + held_out])
    test, truth = decoded(splits.test, torch.arange(len(splits.test.items)))
    kept, kept_labels = train[:images], labels[:images]
    return (
        Pixels(kept, kept_labels, test, truth),
        Pixels(kept, kept_labels, train[images:], labels[images:]),
    )


def decoded(images: Images, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Pixels (N, 3, H, W) and labels (N,) of ``rows``."""
    pixels = np.stack([np.asarray(read_rgb(images.items[i])) for i in rows.tolist()])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2), images.labels[rows]


def choose(
    name: str, setting: Setting, held_out: Pixels, args: argparse.Namespace
) -> float:
    """The learning rate with the best linear accuracy on held-out training images."""
    at = replace(setting, batch_size=args.choose_at, epochs=args.choose_epochs)
    at = replace(at, points=(args.choose_epochs,))
    found = {
        rate: done(Cell(name, at, rate, CHOOSING_SEED), held_out, args.out, "choose")
        for rate in args.rates
    }
    best: float = max(found, key=lambda rate: float(found[rate]["linear"]))
    return best


def done(cell: Cell, pixels: Pixels, out: Path, stage: str = "run") -> dict[str, Any]:
    """The result of ``cell``, read if it is there."""
    name = re.sub("[^a-z0-9.]+", "-", cell.method.lower())
    path = out / (
        f"{stage}_{name}_b{cell.setting.batch_size}_lr{cell.learning_rate:.3g}"
        f"_seed{cell.seed}.json"
    )
    if not path.is_file():
        result = Run(cell, pixels).result()
        temporary = path.with_suffix(".tmp")
        temporary.write_text(json.dumps(result) + "\n")
        temporary.replace(path)
        print(
            f"{path.stem}: k-NN {result['knn']:.1f}, linear {result['linear']:.1f}, "
            f"{result['seconds']:.0f} s",
            flush=True,
        )
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded
