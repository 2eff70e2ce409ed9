"""Class-balanced batches, for those who prefer them."""

from __future__ import annotations

import sys
from collections import deque
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DistributedSampler

from varcon_plugin.distributed import active_group, rank_of, world_size

__all__ = ["ClassBalancedSampler"]

SEED_STRIDE = 1_000_003  # keeps the epochs of neighbouring seeds apart


class ClassBalancedSampler(DistributedSampler[int]):
    """Global batches of P classes with K images each, over the ranks (ours).

    A sampler for a `DataLoader` whose batch size is P * K / (number of ranks): each
    rank gets its share of every global batch, in random order, so that no rank holds
    whole classes alone. Classes come in random order, each once before any comes again;
    so do the images of a class. No image is twice in a global batch, but of a class
    with fewer than K images.

    The order follows from seed and epoch alone, the same on every rank: a resumed run
    goes on with the epoch it had come to.

    It may be made before the process group is; the ranks are looked up when it is
    iterated or asked for its length. It is a ``DistributedSampler`` so that Lightning
    (any ``use_distributed_sampler``) and Fabric do not share its images once more.
    Accelerate, and the Trainer of Hugging Face on top of it, share out whatever they
    prepare: for them it yields whole batches, with any of their ``split_batches``,
    ``dispatch_batches`` and ``even_batches``. The batch size with ``split_batches`` is
    P * K.

    Args:
        labels: class of each image (M,).
        classes_per_batch: P.
        images_per_class: K.
        num_batches: global batches in an epoch; None is as many as M images fill.
        seed: of the order.
        num_replicas: number of ranks; None is those of torch.distributed.
        rank: this rank; given with ``num_replicas`` or not at all.

    Raises:
        ValueError: a number is out of range, there are fewer than P classes, a global
            batch cannot be shared evenly by the ranks, or (once iterated) the batch
            size of the `DataLoader` is another.
        RuntimeError: on iterating, Accelerate runs with several processes and did not
            prepare the `DataLoader`, or did with ``num_replicas`` given.
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
        self.classes_per_batch = classes_per_batch
        self.images_per_class = images_per_class
        self.num_batches = num_batches
        self.seed = seed
        self.epoch = 0
        self.given: tuple[int, int] | None = None
        if num_replicas is not None or rank is not None:
            if num_replicas is None or rank is None or not 0 <= rank < num_replicas:
                raise ValueError(
                    "num_replicas and rank must be given together, with 0 <= rank < "
                    f"num_replicas, got {num_replicas} and {rank}"
                )
            self.given = num_replicas, rank
            self._share(num_replicas)

    def __len__(self) -> int:
        """Number of images this rank gets in an epoch; under Accelerate of all ranks.

        Accelerate's loaders divide it.
        """
        ranks, _ = self._ranks()
        return self.num_batches * self._share(ranks)

    def set_epoch(self, epoch: int) -> None:
        """Choose the order; training loops call it before each epoch."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        """Indices of this rank's images, batch after batch."""
        ranks, rank = self._ranks()
        split = ranks
        accelerate = accelerate_ranks()
        if accelerate > 1:
            how = accelerate_splits(self)
            if how is not None and ranks > 1:
                raise RuntimeError(
                    "Accelerate shares out the batches of a DataLoader that it "
                    "prepared: leave num_replicas and rank of ClassBalancedSampler out"
                )
            if how is None and self.given is None:
                raise RuntimeError(
                    "Accelerate did not prepare the DataLoader of this "
                    "ClassBalancedSampler, so every process would get the same images: "
                    "pass it to accelerator.prepare(), or give the sampler "
                    "num_replicas and rank"
                )
            split = accelerate if how == "batches" else split
        reader = sys._getframe(1).f_locals.get("self")  # a DataLoader's BatchSampler
        if isinstance(reader, BatchSampler) and reader.sampler is self:
            self._check_batch_size(reader.batch_size, split)
        return self._images(ranks, rank)

    def _ranks(self) -> tuple[int, int]:
        """How many ranks this sampler itself shares its batches with, and which it is.

        Accelerate counts batches of the whole order when it shares them out.
        """
        if self.given is not None:
            return self.given
        if accelerate_ranks() > 1:
            return 1, 0
        group = active_group()
        return world_size(group), rank_of(group)

    def _share(self, ranks: int) -> int:
        """Images of a global batch that each of ``ranks`` gets."""
        batch = self.classes_per_batch * self.images_per_class
        if batch % ranks:
            raise ValueError(
                f"classes_per_batch * images_per_class = {batch} must be a multiple of "
                f"the number of ranks, {ranks}"
            )
        return batch // ranks

    def _check_batch_size(self, size: int, ranks: int) -> None:
        share = self._share(ranks)
        if size != share:
            among = f" / {ranks} ranks" if ranks > 1 else ""
            raise ValueError(
                f"batch_size of the DataLoader must be classes_per_batch * "
                f"images_per_class{among} = {share}, got {size}"
            )

    def _images(self, ranks: int, rank: int) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * SEED_STRIDE + self.epoch)
        classes = Deck(torch.arange(len(self.members)), generator)
        images = [Deck(members, generator) for members in self.members]
        for _ in range(self.num_batches):
            chosen = classes.deal(self.classes_per_batch)
            batch = [i for c in chosen for i in images[c].deal(self.images_per_class)]
            shuffled = torch.randperm(len(batch), generator=generator).tolist()
            for position in shuffled[rank::ranks]:
                yield batch[position]


class Deck:
    """Random permutations of ``items``, one after the other, dealt in hands."""

    def __init__(self, items: Tensor, generator: torch.Generator) -> None:
        self.items = items
        self.generator = generator
        self.waiting: deque[int] = deque()

    def deal(self, number: int) -> list[int]:
        """The next ``number`` items; each as often as any other, or once more."""
        hand: list[int] = []
        while len(hand) < number:
            hand += self._distinct(min(number - len(hand), len(self.items)))
        return hand

    def _distinct(self, number: int) -> list[int]:
        """The next ``number`` that differ; what comes twice waits for the next hand."""
        hand: dict[int, None] = {}
        put_off: list[int] = []
        while len(hand) < number:
            if not self.waiting:
                order = torch.randperm(len(self.items), generator=self.generator)
                self.waiting.extend(self.items[order].tolist())
            item = self.waiting.popleft()
            if item in hand:
                put_off.append(item)
            hand[item] = None
        self.waiting.extendleft(reversed(put_off))
        return list(hand)


def accelerate_ranks() -> int:
    """Processes of the Accelerator that was made here; 1 if none was."""
    state = sys.modules.get("accelerate.state")
    if state is None or not state.is_initialized():
        return 1
    ranks: int = state.PartialState().num_processes
    return ranks


def accelerate_splits(sampler: object) -> str | None:
    """What Accelerate deals to the ranks, if it reads ``sampler`` at this moment.

    Returns:
        ``"batches"``: each rank whole ones, in turn; ``"images"``: each its part of
        every batch; None: no loader that it prepared is reading the sampler.
    """
    state = sys.modules["accelerate.state"]
    for loader in state.GradientState().dataloader_references:
        inner = getattr(loader, "batch_sampler", None)
        split = getattr(loader, "split_batches", False)
        while inner is not None and getattr(inner, "sampler", None) is not sampler:
            split = split or getattr(inner, "split_batches", False)
            inner = getattr(inner, "batch_sampler", None)
        if inner is not None:
            return "images" if split else "batches"
    return None
