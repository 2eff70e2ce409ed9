"""Class-balanced batches, for those who prefer them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import Sampler

__all__ = ["ClassBalancedSampler"]

SEED_STRIDE = 1_000_003  # keeps the epochs of neighbouring seeds apart


class ClassBalancedSampler(Sampler[int]):
    """Global batches of P classes with K images each, over the ranks (ours).

    A sampler for a `DataLoader` whose batch size is
    ``classes_per_batch * images_per_class / num_replicas``: each rank gets its share of
    every global batch, in random order, so that no rank holds whole classes alone.
    Classes come in random order, each once before any comes again; so do the images of
    a class. A class with fewer than K images repeats some of them.

    The order follows from seed and epoch alone, the same on every rank: a resumed run
    goes on with the epoch it had come to.

    Args:
        labels: class of each image (M,).
        classes_per_batch: P.
        images_per_class: K.
        num_batches: global batches in an epoch; None is as many as M images fill.
        seed: of the order.
        num_replicas: number of ranks; None asks torch.distributed.
        rank: this rank; None asks torch.distributed.

    Raises:
        ValueError: a number is less than 1, there are fewer than P classes, or a global
            batch cannot be shared evenly by the ranks.
    """

    def __init__(
        self,
        labels: Sequence[int] | Tensor,
        classes_per_batch: int,
        images_per_class: int,
        *,
        num_batches: int | None = None,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
    ) -> None:
        running = dist.is_available() and dist.is_initialized()
        if num_replicas is None:
            num_replicas = dist.get_world_size() if running else 1
        if rank is None:
            rank = dist.get_rank() if running else 0
        self.labels = torch.as_tensor(labels)
        batch = classes_per_batch * images_per_class
        if num_batches is None:
            num_batches = max(1, len(self.labels) // max(1, batch))
        for name, value in (
            ("classes_per_batch", classes_per_batch),
            ("images_per_class", images_per_class),
            ("num_batches", num_batches),
        ):
            if value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        order = self.labels.argsort(stable=True)
        _, counts = torch.unique(self.labels, return_counts=True)
        self.members = torch.split(order, counts.tolist())  # images of each class
        if classes_per_batch > len(self.members):
            raise ValueError(
                f"classes_per_batch must be at most the number of classes, "
                f"{len(self.members)}, got {classes_per_batch}"
            )
        if batch % num_replicas:
            raise ValueError(
                f"classes_per_batch * images_per_class = {batch} must be a multiple of "
                f"the number of ranks, {num_replicas}"
            )
        self.classes_per_batch = classes_per_batch
        self.images_per_class = images_per_class
        self.num_batches = num_batches
        self.seed = seed
        self.num_replicas = num_replicas
        self.rank = rank
        self.epoch = 0

    def __len__(self) -> int:
        """Number of images this rank gets in an epoch."""
        batch = self.classes_per_batch * self.images_per_class
        return self.num_batches * batch // self.num_replicas

    def set_epoch(self, epoch: int) -> None:
        """Choose the order; training loops call it before each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        """Indices of this rank's images, batch after batch."""
        generator = torch.Generator().manual_seed(self.seed * SEED_STRIDE + self.epoch)
        classes = _endless(torch.arange(len(self.members)), generator)
        images = [_endless(members, generator) for members in self.members]
        for _ in range(self.num_batches):
            chosen = _distinct(classes, self.classes_per_batch)
            batch = [
                next(images[c]) for c in chosen for _ in range(self.images_per_class)
            ]
            shuffled = torch.randperm(len(batch), generator=generator).tolist()
            for position in shuffled[self.rank :: self.num_replicas]:
                yield batch[position]


def _endless(items: Tensor, generator: torch.Generator) -> Iterator[int]:
    """Random permutations of ``items``, one after the other."""
    while True:
        yield from items[torch.randperm(len(items), generator=generator)].tolist()


def _distinct(items: Iterator[int], number: int) -> list[int]:
    """The next ``number`` of ``items`` that differ; those drawn twice are put off."""
    chosen: dict[int, None] = {}
    while len(chosen) < number:
        chosen[next(items)] = None
    return list(chosen)
