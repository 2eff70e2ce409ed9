"""Options for how fast a recipe runs; what it computes changes by rounding at most."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from mmengine.hooks import Hook
from mmengine.logging import print_log
from mmengine.optim import OptimWrapper
from mmengine.runner import EpochBasedTrainLoop, Runner
from mmpretrain.registry import HOOKS, OPTIM_WRAPPERS
from torch import Tensor, nn

from varcon_plugin.mmpretrain.unwrap import unwrapped
from varcon_plugin.training.precision import has_bfloat16
from varcon_plugin.training.prefetch import CopyAhead

__all__ = ["BFloat16OptimWrapper", "CompileHook", "PrefetchHook"]


@HOOKS.register_module()
class CompileHook(Hook):
    """Compiles the backbone with `torch.compile`, in place.

    mmengine's own ``compile=True`` takes the whole training step, optimizer included,
    and torch 2.14 cannot trace mmpretrain's LARS. Checkpoints keep their names.

    Args:
        options: arguments of `torch.compile` (``backend``, ``mode``, ...).
    """

    def __init__(self, **options: Any) -> None:
        self.options = options

    def before_train(self, runner: Runner) -> None:
        """Compile at the first forward after this."""
        unwrapped(runner).backbone.compile(**self.options)


@OPTIM_WRAPPERS.register_module()
class BFloat16OptimWrapper(OptimWrapper):
    """Mixed precision in bfloat16 where the device has it, else float32.

    On GPUs and on CPUs with AVX512-BF16 or AMX, the forward pass runs under autocast
    to bfloat16; weights, their gradients and the loss stay in float32. bfloat16 has
    the range of float32, so no loss scale is needed. Elsewhere this is mmengine's
    ``OptimWrapper``. A line in the log says which.

    Args:
        **kwargs: arguments of mmengine's ``OptimWrapper``.
    """

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.device_type = self.optimizer.param_groups[0]["params"][0].device.type
        self.enabled = has_bfloat16(self.device_type)
        where = self.device_type if self.device_type != "cpu" else "this CPU"
        print_log(
            f"Mixed precision: bfloat16 on {where}."
            if self.enabled
            else f"Training in float32: {where} has no bfloat16 in hardware.",
            logger="current",
        )

    @contextmanager
    def optim_context(self, model: nn.Module) -> Iterator[None]:
        """Around the forward pass: mmengine's context, and autocast."""
        autocast = torch.autocast(
            self.device_type, torch.bfloat16, enabled=self.enabled
        )
        with super().optim_context(model), autocast:
            yield


@HOOKS.register_module()
class PrefetchHook(Hook):
    """Copies each batch to the GPU while the step before still runs there.

    In runs counted in epochs, with the images in ``inputs``; elsewhere, and without a
    GPU, it changes nothing. See `varcon_plugin.training.prefetch.CopyAhead`.
    """

    def before_train(self, runner: Runner) -> None:
        """Put `CopyAhead` around the loader."""
        device = next(unwrapped(runner).parameters()).device
        loop = runner.train_loop
        if device.type != "cpu" and isinstance(loop, EpochBasedTrainLoop):
            loop.dataloader = CopyAhead(loop.dataloader, device, copy_inputs)


def copy_inputs(
    batch: dict[str, Any], device: torch.device
) -> tuple[dict[str, Any], list[Tensor]]:
    """The collated batch with ``inputs``, one tensor or several, on ``device``."""
    inputs = batch["inputs"]
    parts = [inputs] if isinstance(inputs, Tensor) else list(inputs)
    there = [part.to(device, non_blocking=True) for part in parts]
    moved = there[0] if isinstance(inputs, Tensor) else there
    return {**batch, "inputs": moved}, there
