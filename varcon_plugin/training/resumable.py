"""Shuffled data whose order and random numbers follow from the seed and the epoch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.utils.data import Dataset, DistributedSampler

from varcon_plugin.distributed import active_group, rank_of, world_size
from varcon_plugin.training.seeding import mix_seeds, seed_all

__all__ = ["ResumableSampler", "SeededDataset"]

Draw = tuple[int, int]  # seed of the random numbers, index of the image


class ResumableSampler(DistributedSampler[Draw]):
    """A random permutation an epoch, shared by the ranks; can begin in the middle.

    For a `DataLoader` of a `SeededDataset`: with each index comes the seed for its
    augmentation. Both follow from seed, epoch and the place in the epoch, whatever has
    been drawn before and by how many workers. Every rank gets equally many images; what
    is left over of an epoch is another part of it each time. It is a
    ``DistributedSampler`` so that frameworks do not share its images once more.

    Args:
        length: images in the dataset.
        seed: of the run, >= 0.
    """

    def __init__(self, length: int, seed: int) -> None:
        self.length = length
        self.seed = seed
        self.epoch = self.start = 0

    def __len__(self) -> int:
        """Images that this rank gets in a whole epoch."""
        return self.length // world_size(active_group())

    def set_epoch(self, epoch: int) -> None:
        """Choose the order, from its start if it is another epoch's than before."""
        if epoch != self.epoch:
            self.epoch, self.start = epoch, 0

    def go_to(self, epoch: int, start: int) -> None:
        """Begin the next iteration within an epoch.

        Args:
            epoch: from 0.
            start: images of it that this rank has had.
        """
        self.epoch, self.start = epoch, start

    def __iter__(self) -> Iterator[Draw]:
        """This rank's images of the epoch, from ``start``."""
        generator = torch.Generator().manual_seed(mix_seeds(self.seed, self.epoch))
        order = torch.randperm(self.length, generator=generator).tolist()
        rank, ranks = rank_of(active_group()), world_size(active_group())
        for place in range(self.start, len(self)):
            position = place * ranks + rank
            yield mix_seeds(self.seed, self.epoch, position), order[position]


class SeededDataset(Dataset[Any]):
    """``dataset`` as `ResumableSampler` draws from it: seeds, then takes the image.

    In the process that reads, `random`, `numpy.random` and torch are seeded.
    """

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        length: int = len(self.dataset)  # type: ignore[arg-type]
        return length

    def __getitem__(self, draw: Draw) -> Any:
        seed, index = draw
        seed_all(seed)
        return self.dataset[index]
