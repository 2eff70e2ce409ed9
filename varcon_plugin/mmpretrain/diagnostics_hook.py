"""Diagnostics for mmengine: measures to every visualiser, warnings to the log."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS
from torch import nn

from varcon_plugin.health.monitor import DiagnosticsMonitor, find_loss
from varcon_plugin.mmpretrain.unwrap import unwrapped
from varcon_plugin.self_supervised import SelfSupervisedVarConLoss

__all__ = ["VarConDiagnosticsHook"]

STATE = "varcon_diagnostics"  # in the message hub, which checkpoints hold


@HOOKS.register_module()
class VarConDiagnosticsHook(Hook):
    """Shows whether a VarCon run is healthy (see docs/diagnostics.md).

    The measures go to every configured visualiser as ``varcon/NAME``, and to
    ``WORK_DIR/diagnostics`` for tools/plot_diagnostics.py; a failure sign is a warning
    in the log, once. A resumed run goes on in the same files and does not repeat it.

    Args:
        interval: iterations from one measurement to the next.
        histogram_epochs: epochs, from 1, whose distribution of confidence and tau2 is
            stored, or every n-th for an int. A run counted in iterations is one epoch.
        views: views of an image in a batch; None counts the embeddings of the first.
        patience: measurements in a row that show a failure sign before the warning.

    Raises:
        ValueError: an argument is less than 1, or the model holds no `VarConLoss`.
    """

    def __init__(
        self,
        interval: int = 50,
        histogram_epochs: int | Sequence[int] = (10, 50, 100, 200),
        views: int | None = None,
        patience: int = 5,
    ) -> None:
        self.settings: dict[str, Any] = {
            "interval": interval,
            "histogram_epochs": histogram_epochs,
            "views": views,
            "patience": patience,
        }

    def before_train(self, runner: Runner) -> None:
        """Find the loss; go on from a resumed checkpoint."""
        directory = Path(runner.work_dir, "diagnostics") if is_main_process() else None
        model = unwrapped(runner)
        self.monitor = DiagnosticsMonitor(
            find_loss(model),
            directory,
            classes=class_names(runner.train_dataloader.dataset, model),
            **self.settings,
        )
        old = self.monitor.begin_run(runner.iter)
        if old is not None:
            runner.logger.info(f"Diagnostics of an earlier run are now in {old}")
        state = runner.message_hub.runtime_info.get(STATE)
        if state is not None:
            self.monitor.load_state_dict(state)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Observe this iteration if its turn has come."""
        samples = (data_batch or {}).get("data_samples")
        self.monitor.begin_step(
            runner.iter + 1, runner.epoch + 1, len(samples) if samples else None
        )

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        """Show what was measured."""
        step = runner.iter + 1
        scalars, warning = self.monitor.end_step(step / runner.max_iters)
        if scalars is None:
            return
        tagged = {f"varcon/{name}": value for name, value in scalars.items()}
        runner.visualizer.add_scalars(tagged, step=step)
        if warning is not None:
            runner.logger.warning(f"{warning.name}: {warning.message}")
        runner.message_hub.update_info(STATE, self.monitor.state_dict())

    def after_train_epoch(self, runner: Runner) -> None:
        """Store the histograms of a chosen epoch."""
        self.monitor.end_epoch(runner.epoch + 1)


def class_names(dataset: Any, model: nn.Module) -> Sequence[str]:
    """Of the labels that the loss gets; none where each image is a class."""
    if any(isinstance(part, SelfSupervisedVarConLoss) for part in model.modules()):
        return ()
    return getattr(dataset, "metainfo", {}).get("classes") or ()
