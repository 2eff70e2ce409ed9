"""Train and evaluate one cell of a grid, or find that this has been done."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmengine.config import Config

from varcon_plugin.evaluation import sources
from varcon_plugin.evaluation.images import Splits
from varcon_plugin.evaluation.settings import Settings
from varcon_plugin.evaluation.suite import Evaluation
from varcon_plugin.experiments.grid import Cell
from varcon_plugin.mmpretrain.evaluation import load_encoder, load_splits

__all__ = ["CellError", "Place", "cell_config", "read_data", "run_cell"]

K, TEMPERATURE = 20, 0.07  # DINO's k-NN evaluation


class CellError(Exception):
    """Training failed; says where its log is."""


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
    """

    root: Path
    recipe: str
    out: Path
    data: Path | None = None
    epochs: int | None = None
    processes: int = 1
    points: int = 5
    device: str = "cpu"


def run_cell(cell: Cell, place: Place, data: Splits) -> dict[str, Any]:
    """The result of ``cell``: read if it is there, else trained for and evaluated.

    A run that was interrupted goes on from its last checkpoint.

    Raises:
        CellError: training failed.
        ValueError: the folder holds the result of another configuration.
    """
    folder = place.out / "cells" / cell.name
    cfg = cell_config(cell, place)
    described = json.loads(json.dumps({"config": cfg.to_dict()}, default=str))
    done = folder / "result.json"
    if done.is_file():
        result: dict[str, Any] = json.loads(done.read_text())
        if result["config"] != described["config"]:
            raise ValueError(
                f"{done} was made with other settings (epochs, data, recipe?): give "
                "another --out, or delete that folder"
            )
        return result
    folder.mkdir(parents=True, exist_ok=True)
    config = folder / "config.py"
    cfg.dump(config)
    start = time.monotonic()
    train(config, folder, place)
    seconds = time.monotonic() - start
    checkpoints = sorted(folder.glob("epoch_*.pth"), key=epoch_of)
    result = {
        "method": cell.method.name,
        "setting": cell.setting,
        "seed": cell.seed,
        "seconds": round(seconds, 1),
        **measure(config, checkpoints, data, place),
        **described,
    }
    temporary = folder / "result.json.tmp"
    temporary.write_text(json.dumps(result, indent=1) + "\n")
    temporary.replace(done)
    for checkpoint in checkpoints[:-1]:
        checkpoint.unlink()
    return result


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
    cfg.optim_wrapper.optimizer.lr *= images / base
    if place.data is not None:
        cfg.train_dataloader.dataset.data_root = str(place.data)
        set_classes(cfg.model.head, count_classes(place.data))
    if cell.method.bank:
        use_bank(cfg, place)
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
    """Take class references from a momentum bank in place of the batch."""
    loss = cfg.model.head.loss
    classes = loss.pop("num_classes", None)
    if classes is None and place.data is not None:
        classes = count_classes(place.data)
    dim = cfg.model.neck.out_channels
    loss.centroids = {"type": "MomentumCentroids", "num_classes": classes, "dim": dim}


def count_classes(data: Path) -> int:
    """Number of class folders that ``data`` has for training."""
    train = data / "train"
    classes = sum(entry.is_dir() for entry in train.iterdir()) if train.is_dir() else 0
    if not classes:
        raise ValueError(f"no class folders in {train}: expected {train}/<class>/*")
    return classes


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


def train(config: Path, folder: Path, place: Place) -> None:
    """Run the config, from its last checkpoint if it has one."""
    tools = place.root / "tools"
    if place.processes > 1:
        command = ["bash", tools / "dist_train.sh", config, place.processes]
    else:
        command = [sys.executable, tools / "train.py", config]
    command += ["--work-dir", folder]
    if (folder / "last_checkpoint").is_file():
        command.append("--resume")
    log = folder / "train.log"
    search = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    with log.open("a") as output:
        code = subprocess.run(
            [str(part) for part in command],
            cwd=place.root,
            env=os.environ | {"PATH": search},
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode
    if code:
        tail = "\n".join(log.read_text().splitlines()[-5:])
        raise CellError(f"training failed ({code}); {log} ends with\n{tail}")


def epoch_of(checkpoint: Path) -> int:
    """12 for epoch_12.pth."""
    return int(checkpoint.stem.removeprefix("epoch_"))


def measure(
    config: Path, checkpoints: Sequence[Path], data: Splits, place: Place
) -> dict[str, Any]:
    """k-NN top-1 of all checkpoints, linear top-1 of the last one."""
    settings = Settings(ks=(K,), temperatures=(TEMPERATURE,), device=place.device)
    curve = []
    for checkpoint in checkpoints:
        evaluation = Evaluation(load_encoder(config, checkpoint), data, settings)
        knn = evaluation.run("knn")
        assert knn is not None  # one process evaluates
        curve.append([epoch_of(checkpoint), knn["results"][0]["top1"]])
    linear = evaluation.run("linear")
    assert linear is not None
    return {"curve": curve, "knn": curve[-1][1], "linear": linear["top1"]}


def read_data(place: Place) -> Splits:
    """Training and test images to evaluate on: those of the recipe, or the folder's."""
    if place.data is not None:
        return sources.folder(place.data)
    if place.recipe.endswith("digits"):
        return sources.digits()
    linear = place.root / "configs" / f"varcon_{place.recipe}_linear.py"
    return load_splits(linear)
