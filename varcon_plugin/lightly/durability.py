"""A training of Lightning that can be killed and goes on as if it had not been."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.utilities import rank_zero_info

from varcon_plugin.checkpoints.shards import shard_folder
from varcon_plugin.checkpoints.stopping import Interrupted, StopSignals
from varcon_plugin.checkpoints.writing import save
from varcon_plugin.distributed import active_group
from varcon_plugin.lightly.checkpoint_io import DataCheckpointIO
from varcon_plugin.training.resumable import ResumableSampler
from varcon_plugin.training.seeding import mix_seeds, seed_all

__all__ = ["DurableCheckpointIO", "StopAndGoOn"]

INTERRUPTED = "interrupted-step={}.ckpt"


class DurableCheckpointIO(DataCheckpointIO):
    """For ``Trainer(plugins=[DurableCheckpointIO()])``: local files appear whole.

    They are written to a temporary file, synced and renamed. Once a regular checkpoint
    is there, that of an interruption beside it goes.
    """

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        """Write all of it or nothing.

        Raises:
            OSError: the disk is full, ...; what was at ``path`` still is.
        """
        if storage_options is not None or "://" in str(path):
            super().save_checkpoint(checkpoint, path, storage_options)
            return
        save(checkpoint, path)
        for old in Path(path).parent.glob(INTERRUPTED.format("*")):
            if old != Path(path):
                old.unlink(missing_ok=True)
                shutil.rmtree(shard_folder(old), ignore_errors=True)


class StopAndGoOn(Callback):
    """On SIGTERM or SIGUSR1, to any rank: finish the step, save, exit with 75.

    A resumed run goes on with the next batch of the epoch, in the same order and with
    the same random numbers as an uninterrupted one: those of the model follow from
    seed, rank and step. After the last batch of an epoch the stop waits for the
    validation and the regular checkpoint. Lightning's own handling of the two signals
    (under Slurm, requeueing by itself) is replaced while it trains.

    Args:
        sampler: of the training data.
        batch_size: images that a rank takes from it at a time.
        folder: gets the checkpoint of an interruption.
        seed: of the run, >= 0.
    """

    def __init__(
        self, sampler: ResumableSampler, batch_size: int, folder: Path, seed: int
    ) -> None:
        self.sampler = sampler
        self.batch_size = batch_size
        self.folder = folder
        self.seed = seed
        self.signals = StopSignals()

    def state_dict(self) -> dict[str, Any]:
        """What a place in an epoch depends on."""
        return {"images": len(self.sampler), "batch_size": self.batch_size}

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        """Go to where the run was, before data workers start."""
        loops = checkpoint["loops"]["fit_loop"]
        epochs = loops["epoch_progress"]["current"]
        batches = loops["epoch_loop.batch_progress"]["current"]["ready"]
        if epochs["ready"] == epochs["processed"]:  # saved between two epochs
            self.sampler.go_to(epochs["processed"], 0)
            return
        epoch = f"epoch {epochs['processed'] + 1}"
        before = checkpoint["callbacks"].get(self.state_key, {})
        if before == self.state_dict():
            self.sampler.go_to(epochs["processed"], batches * self.batch_size)
            rank_zero_info(f"Going on within {epoch}, after batch {batches}.")
        else:
            self.sampler.go_to(epochs["processed"], 0)
            rank_zero_info(
                f"Going on within {epoch}, after batch {batches}, but with its first "
                f"images again: each process had {before}, now {self.state_dict()}."
            )

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the signals over."""
        self.signals.install()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Restart the random numbers of the model."""
        place = trainer.current_epoch, batch_idx
        seed_all(mix_seeds(self.seed, trainer.global_rank, *place, 0))

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Stop if a rank was told to, once the gradients of a step are complete.

        Raises:
            Interrupted: the run has been saved.
        """
        told = self.signals.received(active_group())
        within_step = (batch_idx + 1) % trainer.accumulate_grad_batches
        if not told or within_step or trainer.is_last_batch:
            return
        path = self.folder / INTERRUPTED.format(trainer.global_step)
        trainer.save_checkpoint(path, weights_only=False)
        trainer.strategy.barrier()
        rank_zero_info(
            f"Stopped by a signal after step {trainer.global_step}: saved {path}; go "
            "on with --resume."
        )
        raise Interrupted(str(path))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give the signals back."""
        self.signals.restore()
