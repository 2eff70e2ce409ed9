"""Draw the views that a recipe trains on: a row an image, a column a view.

python tools/browse_views.py CONFIG OUT.png [--images 6] [--cfg-options KEY=VALUE ...]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from mmengine.config import Config, DictAction
from mmengine.registry import init_default_scope
from mmpretrain.registry import DATASETS, MODELS

from varcon_plugin.commands.messages import fail
from varcon_plugin.commands.places import recipe_path
from varcon_plugin.mmpretrain.blame import ConfigError, build, type_name
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
    if args.images < 1:
        fail(f"--images must be >= 1, got {args.images}")
    try:
        cfg = Config.fromfile(recipe_path(args.config))
        cfg.merge_from_dict(args.cfg_options)
        init_default_scope(cfg.get("default_scope", "mmpretrain"))
        key = "train_dataloader.dataset"
        dataset = build(DATASETS, cfg.train_dataloader.dataset, key)
    except (ConfigError, FileNotFoundError) as error:
        fail(error)
    inner = (cfg.get("model") or {}).get("data_preprocessor")
    finish = finisher(cfg.get("data_preprocessor") or inner or {})
    rows = []
    for index in torch.linspace(0, len(dataset) - 1, args.images).long().tolist():
        sample = dataset[index]
        views = finish(sample)
        name = class_name(sample["data_samples"], dataset.metainfo.get("classes"))
        rows.append((name, views if isinstance(views, list) else [views]))
    draw(rows, reads_bgr(cfg), args.out)
    print(args.out)


def class_name(sample: Any, classes: Sequence[str] | None) -> str:
    """Of a sample; its number where there are no names, nothing without a label."""
    if "gt_label" not in sample:
        return ""
    labels = sample.gt_label.tolist()
    return ", ".join(str(classes[i]) if classes else str(i) for i in labels)


def finisher(preprocessor: dict[str, Any]) -> Callable[[dict[str, Any]], Any]:
    """Makes the views of a sample, augmenting where the recipe does so on the batch."""
    if type_name(preprocessor) != "BatchAugmentDataPreprocessor":
        return lambda sample: sample["inputs"]
    augment = MODELS.build({**preprocessor, "mean": None, "std": None})
    channels = [2, 1, 0] if preprocessor.get("to_rgb", True) else [0, 1, 2]

    def finish(sample: dict[str, Any]) -> list[torch.Tensor]:
        given = sample["inputs"]
        sizes = given if isinstance(given, list) else [given]
        batch = {"inputs": [views[None] for views in sizes]}
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
