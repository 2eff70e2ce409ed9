"""Banks spread over the ranks, beside a checkpoint that one rank writes.

A file written by one rank cannot hold what no rank has: `save_shards` puts the parts of
all ranks into a folder of torch.distributed.checkpoint, from which `load_shards` reads
on any number of ranks. `torch.distributed.checkpoint.format_utils.dcp_to_torch_save`
makes one file of it.
"""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict_loader import load
from torch.distributed.checkpoint.state_dict_saver import save

from varcon_plugin.momentum import SAVED, MomentumCentroids

__all__ = ["load_shards", "save_shards", "shard_folder", "shard_names"]


def shard_names(model: nn.Module) -> list[str]:
    """The entries of ``model``'s state dict that are spread over the ranks."""
    return [
        f"{prefix}.{name}" if prefix else name
        for prefix, module in model.named_modules()
        if isinstance(module, MomentumCentroids) and module.shard is not None
        for name in SAVED
    ]


def shard_folder(file: str | Path) -> Path:
    """Where the banks of the checkpoint ``file`` are: beside it."""
    return Path(f"{file}.bank")


def save_shards(model: nn.Module, file: str | Path) -> None:
    """Write the banks of ``model`` beside ``file``; every rank must call.

    Before ``file`` is written, so that a checkpoint which is there has its banks.
    """
    names = shard_names(model)
    if names:
        state = model.state_dict()
        save({n: state[n] for n in names}, checkpoint_id=shard_folder(file))


def load_shards(model: nn.Module, file: str | Path) -> dict[str, Tensor]:
    """Fill the banks of ``model`` from beside ``file``; every rank must call.

    Returns:
        What was read, each rank its part: entries for ``load_state_dict``.

    Raises:
        FileNotFoundError: the banks of ``file`` are not there.
        CheckpointException: they have another number of classes or dimension.
    """
    names = shard_names(model)
    if not names:
        return {}
    folder = shard_folder(file)
    if not folder.is_dir():
        raise FileNotFoundError(
            f"{folder} is missing: the checkpoint beside it holds a bank spread over "
            "the ranks, which is there"
        )
    state = model.state_dict()
    found: dict[str, Tensor] = {n: state[n] for n in names}
    load(found, checkpoint_id=folder)
    model.load_state_dict(found, strict=False)
    return found
