"""Samplers for mmengine's data loaders."""

from __future__ import annotations

from typing import Any

from mmengine.dist import sync_random_seed
from mmpretrain.datasets import BaseDataset
from mmpretrain.registry import DATA_SAMPLERS

import varcon_plugin.training.sampler

__all__ = ["ClassBalancedSampler"]


@DATA_SAMPLERS.register_module()
class ClassBalancedSampler(varcon_plugin.training.sampler.ClassBalancedSampler):
    """P classes with K images each in every global batch.

    The loader's ``batch_size`` is P * K / (number of processes).

    Args:
        dataset: passed by mmengine; gives the labels.
        classes_per_batch: P.
        images_per_class: K.
        num_batches: global batches in an epoch; None is as many as the images fill.
        seed: of the order; None is one that mmengine draws for all ranks.
    """

    def __init__(
        self,
        dataset: BaseDataset,
        classes_per_batch: int,
        images_per_class: int,
        num_batches: int | None = None,
        seed: int | None = None,
        **_: Any,
    ) -> None:
        super().__init__(
            dataset.get_gt_labels(),
            classes_per_batch,
            images_per_class,
            num_batches=num_batches,
            seed=sync_random_seed() if seed is None else seed,
        )
