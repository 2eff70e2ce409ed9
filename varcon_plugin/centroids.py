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

from varcon_plugin.distributed import gather_labels, sum_across_ranks
from varcon_plugin.functional import class_sums, normalize

__all__ = ["BatchCentroids", "References"]


class References(NamedTuple):
    """What the objective compares a batch with.

    Attributes:
        centroids: (C, D), unit rows, the same on every rank.
        targets: (N,) rows of ``centroids``, this rank's samples.
        present: (C,) bool, the rows that count; None means all.
        own: (N, D), each sample's reference of its own class where that differs from
            ``centroids[targets]``, else None.
        counted: (N,) bool, the samples that have a loss; None means all.
        total: (), number of samples that have a loss, over all ranks.
    """

    centroids: Tensor
    targets: Tensor
    present: Tensor | None
    own: Tensor | None
    counted: Tensor | None
    total: Tensor


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
        rows, targets, exact = self._rows(labels, group, sizes)
        members = embeddings.detach() if self.detach else embeddings
        sums, counts = class_sums(members, targets, rows)
        table = sum_across_ranks(torch.cat((sums, counts[:, None]), dim=1), group)
        sums, counts = table[:, :-1], table[:, -1].detach()
        present = None if exact else counts > 0
        centroids = normalize(sums)
        if not self.leave_one_out:
            return References(centroids, targets, present, None, None, counts.sum())

        counted = counts.index_select(0, targets) > 1
        own = normalize(sums.index_select(0, targets) - members)
        total = (counts * (counts > 1)).sum()
        return References(centroids, targets, present, own, counted, total)

    def _rows(
        self, labels: Tensor, group: ProcessGroup | None, sizes: list[int]
    ) -> tuple[int, Tensor, bool]:
        """Number of rows of the table, each label's row, whether every row is in use.

        The batch cannot fill more rows than it has samples, so the labels of a larger
        ``num_classes`` are ranked first. Both numbers are known to the host and to
        every rank.
        """
        samples = len(labels) if group is None else sum(sizes)
        unknown = group is not None and not sizes
        if unknown and self.num_classes is None:
            raise ValueError(
                "num_classes must be given across ranks under torch.compile, which "
                "leaves the batch sizes of the other ranks unknown; got None"
            )
        if self.num_classes is not None and (unknown or self.num_classes <= samples):
            return self.num_classes, labels, False
        mine = slice(None)
        if group is not None:
            labels, mine = gather_labels(labels, sizes, group)
        if self.num_classes is not None:
            return samples, dense_ranks(labels)[mine], False
        classes, inverse = torch.unique(labels, return_inverse=True)
        return len(classes), inverse[mine], True


def dense_ranks(labels: Tensor) -> Tensor:
    """Which distinct value each label is (N,), in ascending order and from 0.

    As the inverse of `torch.unique`, but without synchronising with the host.
    """
    ordered, order = labels.sort()
    ranks = F.pad(ordered[1:] != ordered[:-1], (1, 0)).cumsum(0)
    return torch.empty_like(ranks).scatter_(0, order, ranks)
