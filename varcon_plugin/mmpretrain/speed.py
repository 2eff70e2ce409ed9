"""Options that change how fast a recipe runs, not what it computes."""

from __future__ import annotations

from typing import Any

from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS

from varcon_plugin.mmpretrain.unwrap import unwrapped

__all__ = ["CompileHook"]


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
