"""Diagnostics for Lightning: measures to every logger, warnings in words."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_info, rank_zero_warn
from torch import Tensor

from varcon_plugin.health.monitor import DiagnosticsMonitor, find_loss
from varcon_plugin.lightly.package import say_which_lightning

__all__ = ["VarConDiagnosticsCallback"]


class VarConDiagnosticsCallback(Callback):
    """Shows whether a VarCon run is healthy (see docs/diagnostics.md).

    For any LightningModule that holds one `VarConLoss`. The measures go to every logger
    as ``varcon/NAME``, and to ``LOG_DIR/diagnostics`` for tools/plot_diagnostics.py; a
    failure sign is a Python warning, once, also over resumed runs.

    Args:
        interval: optimiser steps from one measurement to the next.
        histogram_epochs: epochs, from 1, whose distribution of confidence and tau2 is
            stored, or every n-th for an int.
        views: views of an image in a batch; None counts the embeddings of the first
            for each of its labels, ``batch[1]``, and takes 2 where there are none.
        patience: measurements in a row that show a failure sign before the warning.
        directory: instead of ``LOG_DIR/diagnostics``: to have a resumed run, which
            Lightning gives a new LOG_DIR, go on in the same files. What an earlier run
            left there is kept beside it.

    Raises:
        ValueError: an argument is less than 1, or the module holds no `VarConLoss`.
    """

    def __init__(
        self,
        interval: int = 50,
        histogram_epochs: int | Sequence[int] = (10, 50, 100, 200),
        views: int | None = None,
        patience: int = 5,
        directory: str | Path | None = None,
    ) -> None:
        say_which_lightning(self)
        self.settings: dict[str, Any] = {
            "interval": interval,
            "histogram_epochs": histogram_epochs,
            "views": views,
            "patience": patience,
        }
        self.directory = directory
        self.monitor: DiagnosticsMonitor | None = None
        self._resumed: dict[str, Any] = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the loss; go on from a resumed checkpoint."""
        log_dir = trainer.log_dir or trainer.default_root_dir  # all ranks must ask
        directory = Path(self.directory or Path(log_dir, "diagnostics"))
        self.monitor = DiagnosticsMonitor(
            find_loss(pl_module),
            directory if trainer.is_global_zero else None,
            classes=class_names(trainer.train_dataloader),
            **self.settings,
        )
        old = self.monitor.begin_run(trainer.global_step)
        if old is not None:
            rank_zero_info(f"Diagnostics of an earlier run are now in {old}")
        if self._resumed:
            self.monitor.load_state_dict(self._resumed)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Observe this batch if its turn has come."""
        if self.monitor is None:
            return
        labels = batch[1] if isinstance(batch, list | tuple) and batch[1:] else None
        images = len(labels) if isinstance(labels, Tensor) and labels.ndim else None
        step, epoch = trainer.global_step + 1, trainer.current_epoch + 1
        self.monitor.begin_step(step, epoch, images)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Show what was measured."""
        if self.monitor is None:
            return
        steps = trainer.estimated_stepping_batches
        progress = trainer.global_step / steps if math.isfinite(steps) else None
        scalars, warning = self.monitor.end_step(progress)
        if scalars is None:
            return
        tagged = {f"varcon/{name}": value for name, value in scalars.items()}
        for logger in trainer.loggers:
            logger.log_metrics(tagged, step=trainer.global_step)
        if warning is not None:
            rank_zero_warn(f"{warning.name}: {warning.message}")

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Store the histograms of a chosen epoch."""
        if self.monitor is not None:
            self.monitor.end_epoch(trainer.current_epoch + 1)

    def state_dict(self) -> dict[str, Any]:
        """What was warned of, for the checkpoint."""
        return self._resumed if self.monitor is None else self.monitor.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict` when training starts."""
        self._resumed = state_dict


def class_names(loader: Any) -> Sequence[str]:
    """Names by label, if the dataset behind a loader has them, as torchvision's do."""
    dataset = getattr(loader, "dataset", None)
    while dataset is not None and not hasattr(dataset, "classes"):
        dataset = getattr(dataset, "dataset", None)
    return getattr(dataset, "classes", ())
