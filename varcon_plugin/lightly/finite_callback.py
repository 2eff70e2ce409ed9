"""Ends a run whose loss is no number any more."""

from __future__ import annotations

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from varcon_plugin.health.finite import FiniteGuard, finite_weights
from varcon_plugin.lightly.package import say_which_lightning

__all__ = ["FiniteLossCallback"]


class FiniteLossCallback(Callback):
    """Stops training when the loss stays NaN or infinite, and saves no such weights.

    Raises `varcon_plugin.health.finite.LossNotFiniteError`. Checkpoints written before
    stay. A gradient scaler may skip up to 20 such steps in a row.
    """

    def __init__(self) -> None:
        say_which_lightning(self)
        self.guard = FiniteGuard()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Look at the loss."""
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        if loss is not None:
            self.guard.step(loss, trainer.global_step, **state(trainer))

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Look at loss and weights."""
        self.guard.check(trainer.global_step, **state(trainer))
        finite_weights(pl_module, lambda: last_checkpoint(trainer))


def state(trainer: Trainer) -> dict[str, Any]:
    """What `FiniteGuard` asks for."""
    scaled = getattr(trainer.precision_plugin, "scaler", None) is not None
    return {"scaled": scaled, "checkpoint": lambda: last_checkpoint(trainer)}


def last_checkpoint(trainer: Trainer) -> str:
    """Path of the checkpoint that was written last; empty if there is none."""
    saved = trainer.checkpoint_callback
    last = getattr(saved, "last_model_path", "")
    return str(last or getattr(saved, "best_model_path", ""))
