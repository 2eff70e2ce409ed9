"""A training of mmengine that stops when asked to and goes on within the epoch."""

from __future__ import annotations

from typing import Any

from mmengine.dist import barrier, get_world_size
from mmengine.hooks import CheckpointHook, Hook
from mmengine.logging import print_log
from mmengine.registry import LOOPS
from mmengine.runner import EpochBasedTrainLoop, Runner
from mmpretrain.registry import HOOKS

from varcon_plugin.checkpoints.stopping import Interrupted, StopSignals, shield_worker
from varcon_plugin.distributed import active_group
from varcon_plugin.mmpretrain.durable_checkpoints import DurableCheckpointHook

__all__ = ["ResumableEpochLoop", "StopHook"]


@LOOPS.register_module()
class ResumableEpochLoop(EpochBasedTrainLoop):
    """mmengine's epoch loop, which can begin within an epoch.

    Attributes:
        skip: batches of the next epoch that an interrupted run has trained on. They are
            read and left out, so that all random numbers are those of a run that was
            not interrupted.
    """

    skip = 0

    def run_epoch(self) -> None:
        """Train on the batches of one epoch."""
        self.runner.call_hook("before_train_epoch")
        self.runner.model.train()
        for index, batch in enumerate(self.dataloader):
            if index < self.skip:
                first = self._iter - self.skip
                self.runner.call_hook("before_next_batch", step=first + index + 1)
            else:
                self.run_iter(index, batch)
        self.skip = 0
        self.runner.call_hook("after_train_epoch")
        self._epoch += 1


@HOOKS.register_module()
class StopHook(Hook):
    """On SIGTERM or SIGUSR1, to any rank: finish the step, save, exit with 75.

    The run then goes on with ``--resume``: within the epoch if it has as many processes
    and batches an epoch as before, else from the start of the epoch, which the log
    says. With gradient accumulation the stop waits for the optimiser's step.
    """

    priority = "LOWEST"  # after all that belongs to the step

    def __init__(self) -> None:
        self.signals = StopSignals()
        self.interrupted: dict[str, int] | None = None

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """See whether the run was interrupted within an epoch."""
        self.interrupted = checkpoint.get("meta", {}).get("interrupted")

    def before_train(self, runner: Runner) -> None:
        """Take the signals over, and go to where the run was."""
        self.signals.install()
        loader = runner.train_dataloader
        loader.worker_init_fn = shield_worker(loader.worker_init_fn)
        loop = runner.train_loop
        if self.interrupted is None or not isinstance(loop, EpochBasedTrainLoop):
            return
        batches = self.interrupted["batches"]
        shape = self._shape(runner)
        epoch = f"epoch {runner.epoch + 1}"
        if isinstance(loop, ResumableEpochLoop) and shape.items() <= (
            self.interrupted.items()
        ):
            loop.skip = batches
            said = (
                f"Going on within {epoch}, after batch {batches} of "
                f"{shape['batches_per_epoch']}; those before are read and left out."
            )
        else:
            said = (
                f"Repeating {epoch} from its start: {batches} of its batches were "
                f"trained on by {describe(self.interrupted)}; now "
                f"{describe(shape)}."
            )
        print_log(said, logger="current")

    def _shape(self, runner: Runner) -> dict[str, int]:
        return {
            "batches_per_epoch": len(runner.train_dataloader),
            "processes": get_world_size(),
        }

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        """Stop if a rank was told to.

        Raises:
            Interrupted: the run has been saved.
        """
        received = self.signals.received(active_group())
        wait = getattr(runner.optim_wrapper, "_accumulative_counts", 1)
        if not received or (runner.iter + 1) % wait:
            return
        path = self.save(runner, batch_idx)
        barrier()  # who ends first ends the others
        print_log(
            f"Stopped by a signal after iteration {runner.iter + 1}: saved {path}; go "
            "on with --resume.",
            logger="current",
        )
        self.signals.restore()
        raise Interrupted(path)

    def save(self, runner: Runner, batch_idx: int) -> str:
        """Save after batch ``batch_idx`` of an epoch, to go on from; returns the path.

        For the end of a step, which the runner does not count yet.
        """
        at = {"batches": batch_idx + 1, **self._shape(runner)}
        return saver(runner).save_interrupted(runner, {"interrupted": at})

    def after_train(self, runner: Runner) -> None:
        """Give the signals back."""
        self.signals.restore()


def describe(shape: dict[str, int]) -> str:
    """Two processes of 40 batches an epoch each, in words."""
    return f"{shape['processes']} processes, {shape['batches_per_epoch']} batches each"


def saver(runner: Runner) -> DurableCheckpointHook:
    """The hook that saves checkpoints, or one of the work_dir if the run has none."""
    for hook in runner.hooks:
        if isinstance(hook, DurableCheckpointHook):
            return hook
    other = next((h for h in runner.hooks if isinstance(h, CheckpointHook)), None)
    hook = DurableCheckpointHook(
        out_dir=None if other is None else other.out_dir,
        backend_args=None if other is None else other.backend_args,
    )
    hook.before_train(runner)
    return hook
