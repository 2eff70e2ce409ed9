"""mmpretrain's own train and test scripts, with checks first and on the CPU too."""

from __future__ import annotations

import importlib.util
import inspect
import os
import subprocess
import sys
from contextlib import ExitStack
from copy import deepcopy
from pathlib import Path
from types import ModuleType
from typing import Any

import mmpretrain
import torch.distributed as dist
from mmengine.config import Config
from mmengine.registry import init_default_scope
from mmengine.runner import find_latest_checkpoint
from mmpretrain.registry import DATASETS, MODELS

from varcon_plugin.checkpoints.ownership import end_with_parent
from varcon_plugin.checkpoints.reading import CheckpointError, mismatch
from varcon_plugin.checkpoints.stopping import REQUEUE, Interrupted
from varcon_plugin.distributed import leave_group
from varcon_plugin.health.finite import LossNotFiniteError
from varcon_plugin.health.report_once import told_once
from varcon_plugin.mmpretrain.blame import ConfigError, type_name
from varcon_plugin.mmpretrain.checkpoints import load_weights, with_dot
from varcon_plugin.mmpretrain.cpu import has_accelerator
from varcon_plugin.mmpretrain.durability import (
    add_hooks,
    choose_checkpoint,
    hold,
    storage_message,
)
from varcon_plugin.mmpretrain.flight_plan import flight_plan
from varcon_plugin.mmpretrain.preflight import preflight

__all__ = ["main"]

CHECKED = "VARCON_CHECKED"  # the launcher has had everything checked
LOADERS = ("train_dataloader", "val_dataloader", "test_dataloader")


class UsageError(Exception):
    """A mistake of the caller's: shown as one line, without a traceback."""


# in one line, by the first process
TOLD = (UsageError, ConfigError, CheckpointError, LossNotFiniteError)


def main(name: str) -> None:
    """Run mmpretrain's ``tools/<name>.py`` (train or test) on ``sys.argv``.

    One flag more than mmpretrain's: ``--check`` stops after the checks. Without a GPU,
    several processes run on gloo.
    """
    check_only = "--check" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--check"]
    held = ExitStack()
    interrupted = False
    script: Any = shipped_script(name)
    parse_args, merge_args = script.parse_args, script.merge_args

    def parse_and_check() -> Any:
        args = parse_args()
        if args.launcher == "pytorch":
            end_with_parent()
        check_file("config", args.config)
        if name == "test":
            check_file("checkpoint", args.checkpoint)
        return args

    def merge_and_prepare(cfg: Config, args: Any) -> Config:
        cfg = merge_args(cfg, args)
        if name == "train":
            take_work_dir(cfg, held, check_only)
        check_config(cfg, name)
        if is_first_process() and not os.environ.get(CHECKED):
            flight = preflight(cfg, name)
            if flight is not None:
                print(flight_plan(cfg, flight), flush=True)
        if check_only:
            sys.exit()
        prepare(cfg, name)
        return cfg

    script.parse_args, script.merge_args = parse_and_check, merge_and_prepare
    try:
        with told_once(TOLD):
            run(script)
    except TOLD as error:
        sys.exit(f"{name}.py: {error}" if is_first_process() else 1)
    except Interrupted:
        interrupted = True
    finally:
        held.close()
    leave_group()
    if interrupted:
        sys.exit(REQUEUE)


def run(script: Any) -> None:
    """Call a script's ``main``.

    Raises:
        UsageError: a disk is full, a folder cannot be written, ...
    """
    try:
        script.main()
    except OSError as error:
        message = storage_message(error)
        if message is None:
            raise
        raise UsageError(message) from error


def take_work_dir(cfg: Config, held: ExitStack, check_only: bool) -> None:
    """Own the work_dir until ``held`` is closed, and find what to resume from.

    A check does not make the folder: `preflight` says whether it could be made. Of
    several nodes, which each check first, the first one owns it.

    Raises:
        UsageError: it is another process's, or it holds another run.
    """
    try:
        first = is_first_process() and os.environ.get("NODE_RANK", "0") == "0"
        if first and (not check_only or Path(cfg.work_dir).exists()):
            hold(cfg.work_dir, held)
        choose_checkpoint(cfg, speak=is_first_process())
    except ValueError as error:
        raise UsageError(error) from error


def shipped_script(name: str) -> ModuleType:
    """The script ``tools/<name>.py`` that the mmpretrain wheel ships, as a module."""
    path = Path(mmpretrain.__file__).parent / ".mim" / "tools" / f"{name}.py"
    check_file("mmpretrain's script", str(path))
    spec = importlib.util.spec_from_file_location(f"mmpretrain_{name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check_file(what: str, path: str) -> None:
    """Raise UsageError if ``path`` names a local file that is not there."""
    if "://" not in path and not Path(path).is_file():
        raise UsageError(f"{what} not found: {path}")


def check_config(cfg: Config, name: str) -> None:
    """Raise UsageError for what would fail only once the run has been set up."""
    init_default_scope(cfg.get("default_scope", "mmpretrain"))
    needed = f"{name}_dataloader"
    if cfg.get(needed) is None:
        raise UsageError(f"{cfg.filename} has no {needed}")
    for loader in LOADERS:
        if cfg.get(loader) is not None and (name == "train" or loader == needed):
            check_data(loader, cfg[loader]["dataset"])
    if name == "test" or cfg.get("resume"):
        path = cfg.get("load_from") or find_latest_checkpoint(cfg.work_dir)
        if path:
            check_checkpoint(cfg.model, path)
    backbone = cfg.model.get("backbone", {})
    init_cfg = backbone.get("init_cfg") or {}
    if name == "train" and isinstance(init_cfg, dict) and "checkpoint" in init_cfg:
        if not init_cfg["checkpoint"]:
            key = "model.backbone.init_cfg.checkpoint"
            raise UsageError(
                f"{key} is not set: add --cfg-options {key}=PATH to the command"
            )
        check_checkpoint(backbone, init_cfg["checkpoint"], init_cfg.get("prefix", ""))


def check_checkpoint(model_cfg: Any, path: str, prefix: str | None = None) -> None:
    """Raise UsageError if the weights at ``path`` are not those of a model.

    mmengine only warns, and goes on with random weights. With a ``prefix``, as
    ``init_cfg`` has one, ``""`` too, the checkpoint may hold parts that the model lacks
    (a neck, a classifier).
    """
    check_file("checkpoint", path)
    if not is_first_process():
        return
    state = load_weights(path)
    model = MODELS.build(deepcopy(model_cfg)).state_dict()
    start = with_dot(prefix or "")
    wanted = {start + name: value for name, value in model.items()}
    found = {name: v for name, v in state.items() if name.startswith(start)}
    parts = {name.split(".")[0] for name in model}
    unexpected = [
        name
        for name in found.keys() - wanted.keys()
        if prefix is None or name.removeprefix(start).split(".")[0] in parts
    ]
    wrong = mismatch(wanted, found, sorted(unexpected), most=5)
    if wrong:
        raise UsageError(f"checkpoint {path} is of another model; {wrong}")


def check_data(loader: str, dataset: Any) -> None:
    """Raise UsageError if the folder of a dataset config is missing."""
    for part in dataset.get("datasets", ()):  # of a ConcatDataset
        check_data(loader, part)
    while "dataset" in dataset:  # RepeatDataset and the like
        dataset = dataset["dataset"]
    root = dataset.get("data_root")
    if not root or "://" in root or type_name(dataset) == "ImageFolder":
        return
    cls = DATASETS.get(type_name(dataset))
    can_download = cls and "download" in inspect.signature(cls.__init__).parameters
    if can_download and dataset.get("download", True):
        return
    folder = Path(root).expanduser()
    split = dataset.get("split")
    if split and not (folder / "meta" / f"{split}.txt").exists():
        folder = folder / split
    if not folder.is_dir():
        raise UsageError(
            f"data folder not found: {folder} ({loader}); put the images there as "
            f"{folder}/<class>/*, or name another place with --cfg-options "
            f"{loader}.dataset.data_root=FOLDER"
        )


def prepare(cfg: Config, name: str) -> None:
    """Add our checks to the run, and make it fit a machine without a GPU."""
    hooks = list(cfg.get("custom_hooks") or [])
    if type_name(cfg.model) == "VarCon" and name == "train":
        hooks.append({"type": "mmpretrain.LabelCheckHook"})
    if name == "train":
        hooks.append({"type": "mmpretrain.FiniteLossHook"})
        add_hooks(cfg, hooks)
    cfg.custom_hooks = hooks
    if has_accelerator():
        return
    if type_name(cfg.get("optim_wrapper")) == "AmpOptimWrapper":
        cfg.optim_wrapper = {
            key: value
            for key, value in cfg.optim_wrapper.items()
            if key not in ("dtype", "loss_scale", "use_fsdp")
        } | {"type": "BFloat16OptimWrapper"}
    if cfg.launcher != "none":
        if cfg.launcher == "slurm":
            use_slurm_environment()
        dist.init_process_group("gloo")
        cfg.model_wrapper_cfg = {
            "type": "CPUDistributedDataParallel",
            "broadcast_buffers": False,
            "find_unused_parameters": cfg.get("find_unused_parameters", False),
        }


def is_first_process() -> bool:
    """Whether this process is the one of the job that should speak."""
    return int(os.environ.get("RANK", os.environ.get("SLURM_PROCID", 0))) == 0


def use_slurm_environment() -> None:
    """Say to torch what Slurm says of this process."""
    if "MASTER_ADDR" not in os.environ:
        nodes = ["scontrol", "show", "hostnames", os.environ["SLURM_JOB_NODELIST"]]
        hosts = subprocess.run(nodes, capture_output=True, text=True, check=True)
        os.environ["MASTER_ADDR"] = hosts.stdout.split()[0]
    os.environ["RANK"] = os.environ["SLURM_PROCID"]
    os.environ["WORLD_SIZE"] = os.environ["SLURM_NTASKS"]
    os.environ["LOCAL_RANK"] = os.environ["SLURM_LOCALID"]
    os.environ.setdefault("MASTER_PORT", "29500")
