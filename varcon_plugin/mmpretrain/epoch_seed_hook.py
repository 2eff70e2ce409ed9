"""Random numbers that follow from seed, rank and step."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmcv.transforms import BaseTransform
from mmengine.dist import get_rank
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.registry import HOOKS

from varcon_plugin.mmpretrain.data_preprocessor import BatchAugmentDataPreprocessor
from varcon_plugin.mmpretrain.unwrap import nested, unwrapped
from varcon_plugin.training.seeding import WorkerSeed, mix_seeds, seed_all

__all__ = ["EpochSeedHook"]

EPOCH, STEP, FETCH = range(3)  # what the numbers are for


@HOOKS.register_module()
class EpochSeedHook(Hook):
    """Makes all random numbers follow from the run's seed, the rank and the step.

    Crops and augmentation in data workers or in the training process, and what the
    model draws. Without it everything draws on from where it is, and after a resume
    from the start: the first epoch's random numbers would come again.
    """

    def before_train(self, runner: Runner) -> None:
        """Give pipelines that have no seed of their own one, before workers start."""
        for dataset in nested(runner.train_dataloader.dataset):
            steps = getattr(getattr(dataset, "pipeline", None), "transforms", None)
            if steps is not None and not any(map(has_seed, steps)):
                steps.insert(0, SeedWorker())

    def before_train_epoch(self, runner: Runner) -> None:
        """Restart the random numbers of workers, sampler and this process."""
        for worker_seed in worker_seeds(runner.train_dataloader.dataset):
            worker_seed.restart(runner.seed, get_rank(), runner.epoch)
        self._seed(runner, EPOCH, runner.epoch)

    def before_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None
    ) -> None:
        """Restart those of the model and of the augmentation on the device."""
        preprocessor = unwrapped(runner).data_preprocessor
        if isinstance(preprocessor, BatchAugmentDataPreprocessor):
            preprocessor.augment.restart(runner.seed, get_rank(), runner.iter)
        self._seed(runner, STEP, runner.iter)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Any = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        """Restart those of the next batch, which this process may read."""
        self.before_next_batch(runner, runner.iter + 1)

    def before_next_batch(self, runner: Runner, step: int) -> None:
        """Restart those of the batch that is read before iteration ``step``."""
        self._seed(runner, FETCH, step)

    def _seed(self, runner: Runner, purpose: int, step: int) -> None:
        seed_all(mix_seeds(runner.seed, get_rank(), step, purpose))


class SeedWorker(BaseTransform):
    """First step of a pipeline whose other steps draw from the global generators."""

    def __init__(self) -> None:
        self.worker_seed = WorkerSeed()

    def transform(self, results: dict[str, Any]) -> dict[str, Any]:
        """``results``, after seeding if an epoch began."""
        self.worker_seed.apply()
        return results


def has_seed(step: Any) -> bool:
    """Whether a step of a pipeline can be told to restart its random numbers."""
    return isinstance(getattr(step, "worker_seed", None), WorkerSeed)


def worker_seeds(dataset: Any) -> Iterator[WorkerSeed]:
    """The seeds in the pipelines of a dataset and of the datasets that it wraps."""
    for part in nested(dataset):
        for step in getattr(getattr(part, "pipeline", None), "transforms", []):
            if has_seed(step):
                yield step.worker_seed
