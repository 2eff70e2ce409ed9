"""Where class references come from.

A source is called with the batch and answers with `References`; the loss knows no more
about it than that.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import ProcessGroup

from varcon_plugin.distributed import gather_labels, rank_of, sum_across_ranks
from varcon_plugin.functional import class_sums, exporting, normalize

__all__ = ["BatchCentroids", "References"]


class References(NamedTuple):
    """What the objective compares a batch with.

    Attributes:
        centroids: (C, D), unit rows, the same on every rank.
        targets: (N,) rows of ``centroids``, this rank's samples.
        present: (C,) bool, the rows that count, or how many times each does; None
            means all, once.
        own: (N, D), each sample's reference of its own class where that differs from
            ``centroids[targets]``, else None.
        counted: (N,) bool, the samples that have a loss; None means all.
        total: (), number of samples that have a loss, over all ranks.
        batch: what a bank is to be moved by, once these references were used.
        spread: where every rank holds other centroids, the samples of all ranks and
            what the whole bank is to them; else None. ``targets`` is then -1 for a
            class held elsewhere.
    """

    centroids: Tensor
    targets: Tensor
    present: Tensor | None
    own: Tensor | None
    counted: Tensor | None
    total: Tensor
    batch: ClassTable | None = None
    spread: GlobalBatch | None = None


class GlobalBatch(NamedTuple):
    """The samples of all ranks, and what a bank spread over the ranks is to them.

    Attributes:
        embeddings: (M, D), unit rows, in rank order, detached.
        labels: (M,), their classes.
        targets: (M,), rows of this rank's centroids; -1 for a class held elsewhere.
        sizes: samples of each rank.
        group: the ranks; None for this one alone.
        sum: (D,), of the references of the whole bank that count.
        number: (), how many count.
    """

    embeddings: Tensor
    labels: Tensor
    targets: Tensor
    sizes: list[int]
    group: ProcessGroup | None
    sum: Tensor
    number: Tensor

    @property
    def mine(self) -> slice:
        """Where the samples of this rank are."""
        rank = rank_of(self.group)
        start = sum(self.sizes[:rank])
        return slice(start, start + self.sizes[rank])


@dataclass(frozen=True)
class BatchCentroids:
    """Unit-length class means of the batch, over the batches of all ranks.

    Attributes:
        num_classes: labels are in [0, num_classes): static shapes, no `torch.unique`,
            no host synchronisation. None: any integers.
        leave_one_out: each sample's own embedding is taken out of its class mean.
            Samples without a classmate on any rank then have no reference, and no loss.
        detach: no gradient flows into the means (the paper's choice). Otherwise it
            does, also into those of other ranks.
    """

    num_classes: int | None = None
    leave_one_out: bool = False
    detach: bool = True

    def __call__(
        self,
        embeddings: Tensor,
        labels: Tensor,
        group: ProcessGroup | None,
        sizes: list[int],
    ) -> References:
        """References for ``embeddings`` (N, D), unit rows, and ``labels`` (N,).

        ``sizes`` are the batch sizes of the ranks of ``group``, in rank order; empty if
        not known. One collective of rows (D + 1) numbers, with as many rows as there
        are classes or, if fewer, samples. The labels are gathered before it, unless the
        ``num_classes`` rows are the fewer.
        """
        members = embeddings.detach() if self.detach else embeddings
        table = class_table(members, labels, self.num_classes, group, sizes)
        present = None if table.exact else table.counts > 0
        centroids = normalize(table.sums)
        counts, targets = table.counts, table.targets
        if not self.leave_one_out:
            return References(centroids, targets, present, None, None, counts.sum())

        counted = counts.index_select(0, targets) > 1
        own = normalize(table.sums.index_select(0, targets).sub_(members))
        total = (counts * (counts > 1)).sum()
        return References(centroids, targets, present, own, counted, total)


class ClassTable(NamedTuple):
    """The classes of a batch, over the batches of all ranks.

    Attributes:
        sums: (R, D), sum of the embeddings of each class.
        counts: (R,), their number; 0 in rows not in use.
        classes: (R,), which class each row is; any, in rows not in use.
        targets: (N,), the row of each sample of this rank.
        exact: whether every row is in use.
    """

    sums: Tensor
    counts: Tensor
    classes: Tensor
    targets: Tensor
    exact: bool

    @property
    def means(self) -> Tensor:
        """(R, D), mean of the embeddings of each class."""
        return self.sums / self.counts.clamp(min=1)[:, None]

    @property
    def used_rows(self) -> Tensor:
        """(R,), the number of each row; for rows not in use, that of one in use.

        In O(R), whatever the number of classes, and without synchronising with the
        host.
        """
        used = self.counts > 0
        first = used.to(torch.uint8).argmax(dim=0, keepdim=True)
        return torch.where(used, torch.arange(len(used), device=used.device), first)


def class_table(
    embeddings: Tensor,
    labels: Tensor,
    num_classes: int | None,
    group: ProcessGroup | None,
    sizes: list[int],
) -> ClassTable:
    """Sum the embeddings (N, D) of each class, and over the ranks of ``group``.

    The batch cannot fill more rows than it has samples, so the labels of a larger
    ``num_classes`` are ranked first. Both numbers are known to the host and to every
    rank. ``sizes`` are the batch sizes of the ranks; empty if not known.
    """
    samples = labels.shape[0] if group is None else sum(sizes)
    unknown = group is not None and not sizes
    exact = num_classes is None
    if unknown and num_classes is None:
        raise ValueError(
            "num_classes must be given across ranks under torch.compile, which leaves "
            "the batch sizes of the other ranks unknown; got None"
        )
    static = unknown or exporting()
    if num_classes is not None and (static or num_classes <= samples):
        targets = labels
        classes = torch.arange(num_classes, device=labels.device)
    else:
        mine = slice(None)
        if group is not None:
            labels, mine = gather_labels(labels, sizes, group)
        if exact:
            classes, ranks = torch.unique(labels, return_inverse=True)
        else:
            ranks = dense_ranks(labels)
            classes = labels.new_zeros(samples).scatter_(0, ranks, labels)
        targets = ranks[mine]
    sums, counts = global_class_sums(embeddings, targets, len(classes), group)
    return ClassTable(sums, counts, classes, targets, exact)


def global_class_sums(
    embeddings: Tensor, targets: Tensor, num_classes: int, group: ProcessGroup | None
) -> tuple[Tensor, Tensor]:
    """`class_sums` of the batches of all ranks of ``group``, in one collective."""
    sums, counts = class_sums(embeddings, targets, num_classes)
    if group is None:
        return sums, counts
    table = sum_across_ranks(torch.cat((sums, counts[:, None]), dim=1), group)
    return table[:, :-1], table[:, -1].detach()


def dense_ranks(labels: Tensor) -> Tensor:
    """Which distinct value each label is (N,), in ascending order and from 0.

    As the inverse of `torch.unique`, but without synchronising with the host.
    """
    ordered, order = labels.sort()
    ranks = F.pad(ordered[1:] != ordered[:-1], (1, 0)).cumsum(0)
    return torch.empty_like(ranks).scatter_(0, order, ranks)
