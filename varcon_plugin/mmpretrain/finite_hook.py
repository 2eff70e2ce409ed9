"""Ends a run whose loss is no number any more."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mmengine.hooks import CheckpointHook, Hook
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS

from varcon_plugin.health.finite import FiniteGuard, finite_weights
from varcon_plugin.mmpretrain.unwrap import unwrapped
from varcon_plugin.momentum import follow_scaler

__all__ = ["FiniteLossHook"]


@HOOKS.register_module()
class FiniteLossHook(Hook):
    """Stops training when the loss stays NaN or infinite, and saves no such weights.

    Raises `varcon_plugin.health.finite.LossNotFiniteError`. Checkpoints written before
    stay. A loss scaler may skip up to 20 such steps in a row; class references then
    stay as they were, too. ``tools/train.py`` adds it to every run.
    """

    def before_train(self, runner: Runner) -> None:
        """Start counting."""
        self.guard = FiniteGuard()
        scaler = getattr(runner.optim_wrapper, "loss_scaler", None)
        if scaler is not None:
            follow_scaler(unwrapped(runner), scaler)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        """Look at the loss."""
        if outputs is not None and "loss" in outputs:
            self.guard.step(outputs["loss"], runner.iter + 1, **self.state(runner))
        savers = [hook for hook in runner.hooks if isinstance(hook, CheckpointHook)]
        if any(
            not hook.by_epoch and self.every_n_train_iters(runner, hook.interval)
            for hook in savers
        ):
            self.check(runner)

    def after_train_epoch(self, runner: Runner) -> None:
        """Look at loss and weights, before the checkpoint hook makes room for them."""
        self.check(runner)

    def before_save_checkpoint(
        self, runner: Runner, checkpoint: dict[str, Any]
    ) -> None:
        """Look at the weights."""
        finite_weights(unwrapped(runner), lambda: last_checkpoint(runner))

    def check(self, runner: Runner) -> None:
        """Look at loss and weights now."""
        self.guard.check(runner.iter + 1, **self.state(runner))
        finite_weights(unwrapped(runner), lambda: last_checkpoint(runner))

    def state(self, runner: Runner) -> dict[str, Any]:
        """What `FiniteGuard` asks for."""
        scaled = getattr(runner.optim_wrapper, "loss_scaler", None) is not None
        return {"scaled": scaled, "checkpoint": lambda: last_checkpoint(runner)}


def last_checkpoint(runner: Runner) -> str:
    """Path of the checkpoint that was written last; empty if there is none."""
    pointer = Path(runner.work_dir, "last_checkpoint")
    return pointer.read_text().strip() if pointer.is_file() else ""
