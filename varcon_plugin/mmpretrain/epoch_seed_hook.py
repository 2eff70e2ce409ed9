"""Random numbers of the data that follow from seed, rank and epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS

from varcon_plugin.mmpretrain.data_preprocessor import BatchAugmentDataPreprocessor
from varcon_plugin.mmpretrain.unwrap import unwrapped
from varcon_plugin.training import BatchAugment
from varcon_plugin.training.seeding import WorkerSeed

__all__ = ["EpochSeedHook"]


@HOOKS.register_module()
class EpochSeedHook(Hook):
    """Makes crops and augmentation follow from the run's seed, the rank and the epoch.

    Without it data workers draw on from where they are, and after a resume from the
    start: the first epoch's random numbers would come again.
    """

    def before_train_epoch(self, runner: Runner) -> None:
        """Restart the workers' and the preprocessor's random numbers."""
        preprocessor = unwrapped(runner).data_preprocessor
        parts: list[WorkerSeed | BatchAugment] = [
            *worker_seeds(runner.train_dataloader.dataset)
        ]
        if isinstance(preprocessor, BatchAugmentDataPreprocessor):
            parts.append(preprocessor.augment)
        for part in parts:
            part.restart(runner.seed, get_rank(), runner.iter)


def worker_seeds(dataset: Any) -> Iterator[WorkerSeed]:
    """The seeds in the pipeline of a dataset and of the datasets that it wraps."""
    for step in getattr(getattr(dataset, "pipeline", None), "transforms", []):
        if isinstance(getattr(step, "worker_seed", None), WorkerSeed):
            yield step.worker_seed
    for name in ("dataset", "_dataset"):  # RepeatDataset and the like; a slice
        if hasattr(dataset, name):
            yield from worker_seeds(getattr(dataset, name))
    for part in getattr(dataset, "datasets", []):
        yield from worker_seeds(part)
