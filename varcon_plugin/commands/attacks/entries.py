"""Every command that reads a checkpoint, given one of somebody else's choice."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import mmpretrain
from mmengine.config import Config
from mmengine.logging import MessageHub
from mmengine.optim import build_optim_wrapper
from mmengine.registry import init_default_scope
from mmpretrain.registry import MODELS
from torch.utils.data import DataLoader

from varcon_plugin.commands.places import project_root

__all__ = ["ENTRIES", "LINEAR", "PRETRAINING", "Entry", "whole_checkpoint"]

PRETRAINING = "configs/varcon_r18_digits.py"
LINEAR = "configs/varcon_r18_digits_linear.py"
MMPRETRAINS_OWN = Path(mmpretrain.__file__).parent / ".mim" / "tools" / "train.py"
LIGHTLY = "lightly"
SHORT = ("train_cfg.max_epochs=1", "train_dataloader.batch_size=512")

Command: TypeAlias = list[str]


class Entry(NamedTuple):
    """A way from a checkpoint into the project.

    Attributes:
        config: of the model that the checkpoint is of; ``lightly`` for that door's.
        command: from the checkpoint and an empty folder, in which it may lay a trap
            and which the command writes to.
        in_one_line: whether a refusal is one line; a script that is not ours shows a
            traceback.
    """

    config: str
    command: Callable[[Path, Path], Command]
    in_one_line: bool = True


def whole_checkpoint(config: str) -> dict[str, Any]:
    """What would be saved of an untrained model after an epoch.

    Args:
        config: as in `Entry`.
    """
    if config == LIGHTLY:
        return _lightly_checkpoint()
    cfg = Config.fromfile(project_root() / config)
    init_default_scope(cfg.get("default_scope", "mmpretrain"))
    model = MODELS.build(cfg.model)
    hub = MessageHub("whole_checkpoint")
    hub.update_scalar("train/loss", 1.0)
    hub.update_info("epoch", 1)
    return {
        "meta": {"epoch": 1, "iter": 1, "seed": 0},
        "state_dict": model.state_dict(),
        "message_hub": hub.state_dict(),
        "optimizer": build_optim_wrapper(model, cfg.optim_wrapper).state_dict(),
    }


def _lightly_checkpoint() -> dict[str, Any]:
    """Lightning's, of the model that train_lightly.py trains on the digits."""
    from pytorch_lightning import Trainer

    from varcon_plugin.commands.train_lightly import create_model, parse_args
    from varcon_plugin.lightly.data import create_datasets

    args = parse_args(["--epochs", "1"])
    datasets = create_datasets(args.data)
    model = create_model(args, datasets)
    trainer = Trainer(max_epochs=0, accelerator="cpu", logger=False, barebones=True)
    trainer.fit(model, DataLoader(datasets.train))
    saved: dict[str, Any] = trainer._checkpoint_connector.dump_checkpoint()
    return saved


def training(
    *arguments: str, config: str = PRETRAINING, script: str = "tools/train.py"
) -> Callable[[Path, Path], Command]:
    """Train; in ``arguments``, ``{}`` is the checkpoint."""

    def command(checkpoint: Path, folder: Path) -> Command:
        given = [argument.format(checkpoint) for argument in arguments]
        if "--cfg-options" not in given:
            given.append("--cfg-options")
        return ["python", script, config, "--work-dir", str(folder), *given, *SHORT]

    return command


def weights_of(part: str) -> Callable[[Path, Path], Command]:
    """Train with the checkpoint as the weights of ``model`` or ``model.<part>``."""
    init, prefix = f"{part}.init_cfg", part.removeprefix("model").lstrip(".")
    given = [f"{init}.type=Pretrained", f"{init}.checkpoint={{}}"]
    if prefix:
        given.append(f"{init}.prefix={prefix}.")
    return training("--cfg-options", *given)


def planted_run(checkpoint: Path, folder: Path) -> Command:
    """Go on with a run that somebody else has begun."""
    shutil.copy(checkpoint, folder / "epoch_1.pth")
    (folder / "last_checkpoint").write_text(str(folder / "epoch_1.pth"))
    return training("--resume")(checkpoint, folder)


def two_ranks(checkpoint: Path, folder: Path) -> Command:
    """Resume on two processes."""
    rest = training("--resume", "{}")(checkpoint, folder)[3:]
    return ["bash", "tools/dist_train.sh", PRETRAINING, "2", *rest]


def planted_cell(checkpoint: Path, folder: Path) -> Command:
    """Go on with an experiment whose first cell somebody else has begun."""
    cell = folder / "cells" / "varcon_256_seed0"
    cell.mkdir(parents=True)
    planted_run(checkpoint, cell)
    command = "python tools/run_experiment.py batch-size --settings 256 --seeds 0"
    rest = ["--methods", "VarCon", "--epochs", "1", "--out", str(folder)]
    return [*command.split(), *rest]


def planted_lightly_run(checkpoint: Path, folder: Path) -> Command:
    """Go on with a run of the other trainer that somebody else has begun."""
    (folder / "checkpoints").mkdir()
    shutil.copy(checkpoint, folder / "checkpoints" / "last.ckpt")
    command = "python tools/train_lightly.py --resume --epochs 1 --output-dir"
    return [*command.split(), str(folder)]


def testing(checkpoint: Path, folder: Path) -> Command:
    """Test a linear classifier."""
    out = ["--work-dir", str(folder)]
    return ["python", "tools/test.py", LINEAR, str(checkpoint), *out]


def converting(checkpoint: Path, folder: Path) -> Command:
    """Convert for other libraries."""
    target = [str(folder / "out.pth"), "--to", "plain"]
    return ["python", "tools/convert_checkpoint.py", str(checkpoint), *target]


def evaluating(model: str) -> Callable[[Path, Path], Command]:
    """Evaluate a frozen encoder."""

    def command(checkpoint: Path, folder: Path) -> Command:
        rest = ["--data", "digits", "--protocols", "knn", "--out", str(folder)]
        return ["python", "tools/evaluate.py", model, str(checkpoint), *rest]

    return command


ENTRIES = {
    "train.py --resume PATH": Entry(PRETRAINING, training("--resume", "{}")),
    "train.py --resume": Entry(PRETRAINING, planted_run),
    "dist_train.sh --resume PATH": Entry(PRETRAINING, two_ranks),
    "train.py load_from": Entry(PRETRAINING, training("--cfg-options", "load_from={}")),
    "train.py model.init_cfg": Entry(PRETRAINING, weights_of("model")),
    "train.py neck.init_cfg": Entry(PRETRAINING, weights_of("model.neck")),
    "train.py backbone.init_cfg": Entry(
        PRETRAINING,
        training(
            "--cfg-options", "model.backbone.init_cfg.checkpoint={}", config=LINEAR
        ),
    ),
    "mmpretrain's train.py --resume PATH": Entry(
        PRETRAINING,
        training("--resume", "{}", script=str(MMPRETRAINS_OWN)),
        in_one_line=False,
    ),
    "mmpretrain's train.py load_from": Entry(
        PRETRAINING,
        training("--cfg-options", "load_from={}", script=str(MMPRETRAINS_OWN)),
        in_one_line=False,
    ),
    "test.py": Entry(LINEAR, testing),
    "evaluate.py CONFIG": Entry(PRETRAINING, evaluating(PRETRAINING)),
    "evaluate.py lightly": Entry(LIGHTLY, evaluating("lightly")),
    "convert_checkpoint.py": Entry(PRETRAINING, converting),
    "run_experiment.py, a cell": Entry(PRETRAINING, planted_cell),
    "train_lightly.py --resume": Entry(LIGHTLY, planted_lightly_run),
}
