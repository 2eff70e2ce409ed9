"""What mmengine needs to run several processes without a GPU."""

from __future__ import annotations

from typing import Any

import torch
from mmengine.logging import print_log
from mmengine.model import MMDistributedDataParallel, revert_sync_batchnorm
from mmengine.registry import MODEL_WRAPPERS
from torch import nn

__all__ = ["CPUDistributedDataParallel"]


@MODEL_WRAPPERS.register_module()
class CPUDistributedDataParallel(MMDistributedDataParallel):
    """mmengine's DDP wrapper without devices, and without SyncBN, which needs a GPU.

    Args:
        module: the model; its SyncBN layers become BatchNorm layers of the same state,
            which a line in the log says.
        device_ids: ignored (mmengine always passes one).
        **kwargs: arguments of mmengine's ``MMDistributedDataParallel``.
    """

    def __init__(
        self, module: nn.Module, device_ids: list[int] | None = None, **kwargs: Any
    ) -> None:
        layers = [m for m in module.modules() if isinstance(m, nn.SyncBatchNorm)]
        if layers:
            print_log(
                f"Running on the CPU, where SyncBN does not exist: {len(layers)} "
                "SyncBN layers normalise over each process's own batch instead.",
                logger="current",
            )
            module = revert_sync_batchnorm(module)
        super().__init__(module=module, device_ids=None, **kwargs)


def has_accelerator() -> bool:
    """Whether torch finds a GPU (or another accelerator) that it can use now."""
    return bool(torch.accelerator.is_available())
