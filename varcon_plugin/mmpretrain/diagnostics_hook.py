"""Diagnostics for mmengine: measures to every visualiser, warnings to the log."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS
from torch import Tensor

from varcon_plugin.health.monitor import DiagnosticsMonitor, find_loss
from varcon_plugin.mmpretrain.unwrap import unwrapped

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
        views: views of an image in a batch; None counts those of the first.
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
            "views": views or 1,
            "patience": patience,
        }
        self.views = views

    def before_train(self, runner: Runner) -> None:
        """Find the loss; go on from a resumed checkpoint."""
        directory = Path(runner.work_dir, "diagnostics") if is_main_process() else None
        loss = find_loss(unwrapped(runner))
        self.monitor = DiagnosticsMonitor(loss, directory, **self.settings)
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
        if self.views is None and data_batch is not None:
            self.views = self.monitor.views = count_views(data_batch["inputs"])
        self.monitor.begin_step(runner.iter + 1, runner.epoch + 1)

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


def count_views(inputs: Any) -> int:
    """Views of an image in a collated batch.

    Args:
        inputs: a list of views; of `TwoCrops` one tensor (N, views, H, W, 3); of a
            pipeline without views (N, 3, H, W), or a list of N images.
    """
    if isinstance(inputs, Tensor):
        return inputs.shape[1] if inputs.ndim == 5 else 1
    several = isinstance(inputs[0], list | tuple)  # pseudo_collate: by image
    return len(inputs[0]) if several else len(inputs) if inputs[0].ndim == 4 else 1
