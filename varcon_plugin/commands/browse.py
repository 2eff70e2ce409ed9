"""Draw the views that a recipe trains on: a row an image, a column a view.

python tools/browse_views.py CONFIG OUT.png [--images 6] [--cfg-options KEY=VALUE ...]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from mmengine.config import Config, DictAction
from mmengine.registry import init_default_scope
from mmpretrain.registry import DATASETS, MODELS

from varcon_plugin.commands.messages import fail
from varcon_plugin.commands.places import recipe_path
from varcon_plugin.mmpretrain.blame import type_name
from varcon_plugin.mmpretrain.evaluation import reads_bgr


def main(argv: list[str] | None = None) -> None:
    """Build the dataset alone and draw evenly spaced images of it."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="a path or the name of a recipe")
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int, default=6)
    parser.add_argument("--cfg-options", nargs="+", action=DictAction, default={})
    args = parser.parse_args(argv)
    try:
        config = recipe_path(args.config)
    except FileNotFoundError as error:
        fail(error)
    if args.images < 1:
        fail(f"--images must be >= 1, got {args.images}")
    cfg = Config.fromfile(config)
    cfg.merge_from_dict(args.cfg_options)
    init_default_scope("mmpretrain")
    dataset = DATASETS.build(cfg.train_dataloader.dataset)
    classes = dataset.metainfo.get("classes")
    finish = finisher(cfg.get("data_preprocessor", {}))
    rows = []
    for index in torch.linspace(0, len(dataset) - 1, args.images).long().tolist():
        sample = dataset[index]
        views = finish(sample)
        label = int(sample["data_samples"].gt_label)
        name = str(classes[label]) if classes else str(label)
        rows.append((name, views if isinstance(views, list) else [views]))
    draw(rows, reads_bgr(cfg), args.out)
    print(args.out)


def finisher(preprocessor: dict[str, Any]) -> Callable[[dict[str, Any]], Any]:
    """Makes the views of a sample, augmenting where the recipe does so on the batch."""
    if type_name(preprocessor) != "BatchAugmentDataPreprocessor":
        return lambda sample: sample["inputs"]
    augment = MODELS.build({**preprocessor, "mean": None, "std": None})
    channels = [2, 1, 0] if preprocessor.get("to_rgb", True) else [0, 1, 2]

    def finish(sample: dict[str, Any]) -> list[torch.Tensor]:
        batch = {"inputs": sample["inputs"][None]}
        views = augment(batch, training=True)["inputs"]
        return [view[0, channels].round().byte() for view in views]

    return finish


def draw(rows: list[tuple[str, list[torch.Tensor]]], bgr: bool, path: Path) -> None:
    """A picture of (name, views) rows; views are uint8 (3, H, W)."""
    columns = max(len(views) for _, views in rows)
    size = (1.6 * columns + 1, 1.6 * len(rows))
    figure = Figure(figsize=size, layout="constrained")
    axes = figure.subplots(len(rows), columns, squeeze=False)
    for line, (name, views) in zip(axes, rows, strict=True):
        for axis, view in zip(line, views, strict=False):
            axis.imshow((view.flip(0) if bgr else view).permute(1, 2, 0).numpy())
        for axis in line:
            axis.set(xticks=[], yticks=[])
        line[0].set_ylabel(name, rotation=0, ha="right", va="center")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=100)
