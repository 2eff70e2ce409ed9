"""Lightning's DDP for a bank spread over the ranks."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from pytorch_lightning.strategies import DDPStrategy

from varcon_plugin.checkpoints.shards import (
    load_shards,
    save_shards,
    shard_folder,
    shard_names,
)

__all__ = ["ShardedBankStrategy"]


class ShardedBankStrategy(DDPStrategy):
    """Keeps the parts of a spread bank beside each checkpoint, in FILE.bank.

    ``Trainer(strategy=ShardedBankStrategy())`` with ``VarCon(shard_centroids=True)``.
    Saved on any number of processes, resumed on any other. Takes the arguments of
    Lightning's ``DDPStrategy``.
    """

    _resumed_from: str | Path = ""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], filepath: Any, storage_options: Any = None
    ) -> None:
        """As Lightning's; every rank writes its part first."""
        assert self.lightning_module is not None
        names = set(shard_names(self.lightning_module))
        save_shards(self.lightning_module, filepath)
        state = checkpoint["state_dict"]
        checkpoint["state_dict"] = {k: v for k, v in state.items() if k not in names}
        super().save_checkpoint(checkpoint, filepath, storage_options)

    def load_checkpoint(self, checkpoint_path: Any, *args: Any, **kwargs: Any) -> Any:
        """As Lightning's; the parts are read with the state of the model."""
        self._resumed_from = checkpoint_path
        return super().load_checkpoint(checkpoint_path, *args, **kwargs)

    def load_model_state_dict(self, checkpoint: Any, strict: bool = True) -> None:
        """As Lightning's, with this rank's parts.

        A checkpoint that holds a whole bank itself needs nothing beside it.
        """
        assert self.lightning_module is not None
        state = checkpoint["state_dict"]
        if not all(name in state for name in shard_names(self.lightning_module)):
            state.update(load_shards(self.lightning_module, self._resumed_from))
        super().load_model_state_dict(checkpoint, strict)

    def remove_checkpoint(self, filepath: Any) -> None:
        """The checkpoint and its banks."""
        super().remove_checkpoint(filepath)
        if self.is_global_zero:
            shutil.rmtree(shard_folder(filepath), ignore_errors=True)
