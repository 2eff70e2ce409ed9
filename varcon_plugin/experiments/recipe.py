"""The config that a cell of a grid trains."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from varcon_plugin.evaluation.linear import REGULARISATIONS
from varcon_plugin.experiments.grid import Cell
from varcon_plugin.training.folders import class_names, split_folder

__all__ = ["Place", "cell_config", "count_classes"]


@dataclass(frozen=True)
class Place:
    """What all cells of an experiment share.

    Attributes:
        root: of the repository, with ``configs`` and ``tools``.
        recipe: configs are ``varcon_<recipe>.py`` and
            ``baselines/<loss>_<recipe>.py``.
        out: folder of the experiment.
        data: folder of images that the recipe takes; None is its own.
        epochs: in place of the recipe's, its schedule stretched to them.
        processes: that train together.
        points: evaluations in the course of a run.
        device: for evaluation.
        linear: whether to fit linear classifiers.
        regularisations: of these, to choose from.
        jobs: cells trained at once, with an equal part of the cores each; 1 leaves all
            to torch.
    """

    root: Path
    recipe: str
    out: Path
    data: Path | None = None
    epochs: int | None = None
    processes: int = 1
    points: int = 5
    device: str = "cpu"
    linear: bool = True
    regularisations: Sequence[float] = REGULARISATIONS
    jobs: int = 1


def cell_config(cell: Cell, place: Place) -> Config:
    """The config that ``cell`` trains, complete."""
    path = place.root / "configs" / cell.method.config.format(recipe=place.recipe)
    if not path.is_file():
        raise ValueError(f"the recipe {place.recipe} has no {path}")
    cfg = Config.fromfile(path)
    cfg.merge_from_dict(cell.method.options)
    cfg.randomness = {"seed": cell.seed}
    base = cfg.auto_scale_lr.base_batch_size
    images = cell.batch_size or base
    if images % place.processes:
        raise ValueError(
            f"batch size {images} does not divide by {place.processes} processes"
        )
    cfg.train_dataloader.batch_size = images // place.processes
    cfg.optim_wrapper.optimizer.lr *= images / base * cell.learning_rate
    if place.data is not None:
        cfg.train_dataloader.dataset.data_root = str(place.data)
        set_classes(cfg.model.head, count_classes(place.data))
    if cell.method.bank:
        use_bank(cfg, place)
    elif cfg.model.head.type == "VarConHead":
        cfg.model.head.loss.pop("centroids", None)  # a recipe may have a bank
    if cell.method.balanced:
        balance(cfg, images)
    if place.epochs is not None:
        stretch(cfg, place.epochs)
    epochs = cfg.train_cfg.max_epochs
    cfg.default_hooks.checkpoint = {
        "type": "CheckpointHook",
        "interval": max(1, epochs // place.points),
        "max_keep_ckpts": -1,
    }
    return cfg


def set_classes(head: Any, classes: int) -> None:
    """Tell a head how many classes there are, wherever it was told before."""
    for part in (head, head.get("loss") or {}):
        if part.get("num_classes") is not None:
            part["num_classes"] = classes


def use_bank(cfg: Config, place: Place) -> None:
    """Take class references from a momentum bank, the recipe's if it has one."""
    loss = cfg.model.head.loss
    bank = dict(loss.get("centroids") or {"type": "MomentumCentroids"})
    bank["num_classes"] = loss.pop("num_classes", bank.get("num_classes"))
    if place.data is not None:
        bank["num_classes"] = count_classes(place.data)
    bank["dim"] = cfg.model.neck.out_channels
    loss.centroids = bank


def balance(cfg: Config, images: int) -> None:
    """Batches of equally many images of as many classes as there can be.

    That is 2 of each, or twice as many where the classes would not suffice, and so on.
    """
    classes = cfg.model.head.loss.centroids.num_classes
    per_class = 2
    while images // per_class > classes:
        per_class *= 2
    if images % per_class:
        raise ValueError(
            f"batch size must be a multiple of {per_class}, images of each class in a "
            f"balanced batch, got {images}"
        )
    cfg.train_dataloader.sampler = {
        "type": "ClassBalancedSampler",
        "classes_per_batch": images // per_class,
        "images_per_class": per_class,
    }


def count_classes(data: Path) -> int:
    """Number of class folders that ``data`` has for training."""
    return len(class_names(split_folder(data, "train")))


def stretch(cfg: Config, epochs: int) -> None:
    """Set the length of the run, with warm-up and decay in proportion.

    Parts of the schedule that round to no epoch at all are left out.
    """
    ratio = epochs / cfg.train_cfg.max_epochs
    cfg.train_cfg.max_epochs = epochs
    schedule = cfg.param_scheduler
    parts = schedule if isinstance(schedule, list) else [schedule]
    for part in parts:
        for key in ("begin", "end", "T_max"):
            if key in part:
                part[key] = round(part[key] * ratio)
        if "milestones" in part:
            part["milestones"] = [round(epoch * ratio) for epoch in part["milestones"]]
    cfg.param_scheduler = [p for p in parts if p.get("end", epochs) > p.get("begin", 0)]
