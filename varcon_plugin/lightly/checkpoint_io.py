"""Lightning reads checkpoints as data alone."""

from __future__ import annotations

from typing import Any

from pytorch_lightning.plugins.io import TorchCheckpointIO

from varcon_plugin.checkpoints.reading import CheckpointError, read_checkpoint

__all__ = ["DataCheckpointIO"]


class DataCheckpointIO(TorchCheckpointIO):
    """For ``Trainer(plugins=[DataCheckpointIO()])``; writes as Lightning does."""

    def load_checkpoint(
        self, path: Any, map_location: Any = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """`read_checkpoint`, whatever ``weights_only`` says.

        Raises:
            CheckpointError: as there, or Lightning has not written the file.
        """
        content = read_checkpoint(path, map_location)
        if not isinstance(content, dict) or "global_step" not in content:
            raise CheckpointError(f"{path} is no checkpoint of Lightning")
        return content
