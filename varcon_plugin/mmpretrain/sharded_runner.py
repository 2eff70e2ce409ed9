"""mmengine's runner for a bank spread over the ranks."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.runner import Runner
from mmpretrain.registry import RUNNERS
from torch import nn

from varcon_plugin.checkpoints.shards import (
    load_shards,
    save_shards,
    shard_folder,
    shard_names,
)
from varcon_plugin.mmpretrain.unwrap import unwrapped

__all__ = ["ShardedRunner"]


@RUNNERS.register_module()
class ShardedRunner(Runner):
    """Keeps the parts of a spread bank beside each checkpoint, in FILE.bank.

    In a config: ``runner_type = "ShardedRunner"``, with ``MomentumCentroids`` of
    ``sharded=True``. Saved on any number of processes, resumed on any other.
    """

    def _init_model_weights(self) -> None:
        """As mmengine's, which gives every rank the state of the first."""
        with _without_shards(unwrapped(self)):
            super()._init_model_weights()

    def save_checkpoint(
        self, out_dir: str, filename: str, *args: Any, **kwargs: Any
    ) -> None:
        """As mmengine's; every rank writes its part first."""
        model = unwrapped(self)
        save_shards(model, Path(out_dir) / filename)
        with _without_shards(model):
            super().save_checkpoint(out_dir, filename, *args, **kwargs)
        if is_main_process():
            _drop_orphans(Path(out_dir))

    def load_checkpoint(self, filename: str, *args: Any, **kwargs: Any) -> Any:
        """As mmengine's, then every rank reads its part.

        A checkpoint that holds a whole bank itself needs nothing beside it.
        """
        checkpoint = super().load_checkpoint(filename, *args, **kwargs)
        model = unwrapped(self)
        held = checkpoint.get("state_dict", checkpoint)
        if not all(name in held for name in shard_names(model)):
            load_shards(model, filename)
        return checkpoint


@contextmanager
def _without_shards(model: nn.Module) -> Iterator[None]:
    """Within, the state dict of ``model`` lacks what no single rank has."""
    names = shard_names(model)

    def drop(module: nn.Module, state: dict[str, Any], *_: Any) -> None:
        for name in names:
            state.pop(name, None)

    register: Any = model.register_state_dict_post_hook  # untyped upstream
    handle = register(drop)
    try:
        yield
    finally:
        handle.remove()


def _drop_orphans(folder: Path) -> None:
    """Remove the banks of checkpoints that mmengine has removed."""
    for bank in folder.glob(f"*{shard_folder('')}"):
        if not bank.with_suffix("").exists():
            shutil.rmtree(bank)
