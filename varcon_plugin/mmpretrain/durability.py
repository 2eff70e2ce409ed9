"""What the launcher adds to a training so that it can be killed and goes on."""

from __future__ import annotations

import os
from contextlib import ExitStack
from typing import Any

from mmengine.config import Config
from mmengine.logging import print_log

from varcon_plugin.checkpoints.ownership import FolderInUseError, owned
from varcon_plugin.checkpoints.writing import STORAGE_ERRORS
from varcon_plugin.mmpretrain.durable_checkpoints import checkpoints, newest_of

__all__ = ["add_hooks", "choose_checkpoint", "hold", "storage_message"]


def choose_checkpoint(cfg: Config, speak: bool) -> None:
    """Resolve ``--resume`` to a file, or refuse to train over another run's.

    mmengine follows the file ``last_checkpoint``, which may be missing, empty, of
    another place, or name a damaged file.

    Raises:
        ValueError: the work_dir holds a run and ``resume`` is not asked for, or nothing
            whole to resume from; in one line.
    """
    if not cfg.get("resume"):
        found = checkpoints(cfg)
        if found:
            raise ValueError(
                f"{cfg.work_dir} holds a run already ({found[-1].name}): add --resume "
                "to go on with it, or name another folder with --work-dir"
            )
        return
    if cfg.get("load_from"):
        return
    chosen = newest_of(cfg)
    if chosen.path is not None:
        cfg.load_from = str(chosen.path)
        said = f"Resuming from {chosen}."
    elif chosen.damaged:
        raise ValueError(f"--resume: {cfg.work_dir} holds {chosen}")
    else:
        said = f"Nothing to resume in {cfg.work_dir}: starting from the beginning."
    if speak:
        print_log(said)


def hold(folder: str, held: ExitStack) -> None:
    """Own the work_dir until ``held`` is closed.

    Raises:
        ValueError: it is in use or cannot be written; in one line.
    """
    try:
        held.enter_context(owned(folder))
    except FolderInUseError as error:
        raise ValueError(str(error)) from error
    except OSError as error:
        reason = os.strerror(error.errno or 0)
        raise ValueError(f"work_dir {folder} cannot be written: {reason}") from error


def add_hooks(cfg: Config, hooks: list[dict[str, Any]]) -> None:
    """Durable checkpoints, stopping on signals, and random numbers that resume.

    Args:
        cfg: changed in place, where it has mmengine's own parts.
        hooks: the custom hooks, to which ours are added.
    """
    defaults = cfg.get("default_hooks") or {}
    saving = defaults.get("checkpoint")
    if saving and saving.get("type") in (None, "CheckpointHook"):
        saving["type"] = "mmpretrain.DurableCheckpointHook"
    configured = [hook.get("type") for hook in (*hooks, *defaults.values()) if hook]
    for name in ("EpochSeedHook", "StopHook"):
        if not any(str(known).endswith(name) for known in configured):
            hooks.append({"type": f"mmpretrain.{name}"})
    loop = cfg.get("train_cfg") or {}
    by_default = "EpochBasedTrainLoop" if loop.get("by_epoch") else None
    if loop.get("type", by_default) == "EpochBasedTrainLoop":
        loop.pop("by_epoch", None)
        loop["type"] = "ResumableEpochLoop"


def storage_message(error: OSError) -> str | None:
    """One line for a disk that is full, read-only or gone; None for other errors."""
    if error.errno not in STORAGE_ERRORS:
        return None
    place = f"{error.filename}: " if error.filename else ""
    return f"{place}{error.strerror}"
