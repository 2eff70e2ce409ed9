"""Latent classes for mmengine: checked before, measured and warned of in training."""

from __future__ import annotations

from typing import Any

from mmengine.dist import get_world_size
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS

from varcon_plugin.health.latent_classes import LatentClassMonitor
from varcon_plugin.mmpretrain.unwrap import unwrapped
from varcon_plugin.self_supervised import SelfSupervisedVarConLoss

__all__ = ["LatentClassesHook"]

STATE = "varcon_latent_classes"  # in the message hub, which checkpoints hold


@HOOKS.register_module()
class LatentClassesHook(Hook):
    """Is a run without labels healthy (see docs/self_supervised.md)?

    Before training it checks that batches and queue can fill the classes. Then, where
    there are latent classes, their measures go to every visualiser as
    ``varcon/latent_*``, and a failure sign is a warning in the log, once.

    Args:
        interval: iterations from one report to the next.
        views: of an image in a batch.
        patience: reports in a row that show a failure sign before the warning.

    Raises:
        ValueError: an argument is less than 1, the model holds no
            `SelfSupervisedVarConLoss`, or the batches will not do.
    """

    def __init__(self, interval: int = 50, views: int = 2, patience: int = 3) -> None:
        for name, value in (("interval", interval), ("patience", patience)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.interval = interval
        self.views = views
        self.patience = patience
        self.monitor: LatentClassMonitor | None = None

    def before_train(self, runner: Runner) -> None:
        """Check the batch; watch the head; go on from a resumed checkpoint."""
        head = unwrapped(runner).head
        loss = getattr(head, "loss_module", None)
        if not isinstance(loss, SelfSupervisedVarConLoss):
            raise ValueError(
                "LatentClassesHook needs a SelfSupervisedVarConLoss in the head, found "
                f"{type(loss).__name__} in {type(head).__name__}"
            )
        images = runner.train_dataloader.batch_sampler.batch_size * get_world_size()
        loss.check_batch(images, self.views)
        if loss.pseudo_labels is None:
            return
        self.monitor = monitor = LatentClassMonitor(loss, self.patience)
        head.register_forward_hook(lambda _, inputs, terms: monitor.add(terms))
        state = runner.message_hub.runtime_info.get(STATE)
        if state is not None:
            monitor.load_state_dict(state)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        """Show what was measured."""
        step = runner.iter + 1
        if self.monitor is None or step % self.interval:
            return
        values = self.monitor.report()
        tagged = {f"varcon/{name}": value for name, value in values.items()}
        runner.visualizer.add_scalars(tagged, step=step)
        warning = self.monitor.news(values, step / runner.max_iters)
        if warning is not None:
            runner.logger.warning(f"{warning.name}: {warning.message}")
        runner.message_hub.update_info(STATE, self.monitor.state_dict())
