"""`MomentumCentroids`: class references that outlive the batch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from varcon_plugin.centroids import ClassTable, References, class_table
from varcon_plugin.functional import normalize

__all__ = ["MomentumCentroids"]

SEED_STRIDE = 1_000_000_007  # keeps the steps of neighbouring seeds apart


class MomentumCentroids(nn.Module):
    """A bank of one reference a class, moved by the samples of the class (ours).

    The posterior runs over every class seen so far, present in the batch or not.
    A batch is compared with the bank as it was before the batch, so no sample is part
    of its own reference; then the class means of the batch, over all ranks, move it:

        mean_c <- momentum^n_c mean_c + (1 - momentum^n_c) batch_mean_c

    with n_c the embeddings of class c in the batch (every view counts). A small batch
    thus moves a reference by little and often, a large one by much and seldom, to about
    the same place. A class seen for the first time enters with the mean of its first
    batch, before the loss: for once its samples are part of their own reference. The
    reference of a class that does not occur stays where it is, while the encoder moves
    on: the rarer the class and the longer the epoch, the staler it is.

    In evaluation mode nothing moves; samples of classes never seen then have loss 0 and
    are not counted. Across ranks every rank applies the same update, so the banks stay
    equal to the last bit. Kept in float32 or better, also where the module around it is
    cast to half precision.

    Args:
        num_classes: C; labels are in [0, C).
        dim: D, of the embeddings.
        momentum: share of a reference that is left after one embedding of its class, in
            [0, 1). 0 replaces it by the mean of each batch.
        num_negatives: score the classes of the batch and this many draws from all
            others instead of all classes, so that a step costs the same for any C. The
            softmax denominator, the mean logit of the other classes and their number
            are then unbiased estimates, equal on all ranks; the loss is a concave
            function of the denominator and on average slightly too small.
        accumulation_steps: apply the update once in so many batches, as gradient
            accumulation over them needs to equal one larger batch.
        seed: of the draws of ``num_negatives``.

    Attributes:
        means: (C, D), the moving averages; the references are their directions.
        counts: (C,), embeddings of each class that have moved its reference.
        seen: (C,) bool, the classes that have a reference.

    Raises:
        ValueError: an argument is out of range.
    """

    means: Tensor
    counts: Tensor
    seen: Tensor
    pending_sums: Tensor
    pending_counts: Tensor

    def __init__(
        self,
        num_classes: int,
        dim: int,
        momentum: float = 0.95,
        *,
        num_negatives: int | None = None,
        accumulation_steps: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__()
        for name, value in (
            ("num_classes", num_classes),
            ("dim", dim),
            ("num_negatives", num_negatives),
            ("accumulation_steps", accumulation_steps),
        ):
            if value is not None and value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must be in [0, 1), got {momentum}")
        self.num_classes = num_classes
        self.dim = dim
        self.momentum = momentum
        self.num_negatives = num_negatives
        self.accumulation_steps = accumulation_steps
        self.seed = seed
        self._steps = 0  # training batches so far; lies in the extra state
        self.register_buffer("means", torch.zeros(num_classes, dim))
        self.register_buffer("counts", torch.zeros(num_classes, dtype=torch.int64))
        self.register_buffer("seen", torch.zeros(num_classes, dtype=torch.bool))
        waiting = num_classes if accumulation_steps > 1 else 0
        self.register_buffer("pending_sums", torch.zeros(waiting, dim))
        self.register_buffer("pending_counts", torch.zeros(waiting, dtype=torch.int64))

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        group: ProcessGroup | None,
        sizes: list[int],
    ) -> References:
        """References for ``embeddings`` (N, D), unit rows, and ``labels`` (N,).

        In training mode the bank moves, which the references returned do not see.
        ``group`` and ``sizes`` as for `BatchCentroids`, with the same collectives.
        """
        with torch.no_grad():
            table = class_table(embeddings, labels, self.num_classes, group, sizes)
            if self.training:
                self._enter(table)
            references = self._references(table, labels, embeddings.dtype)
            if self.training:
                self._steps += 1
                self._move(table)
            return references

    def _enter(self, table: ClassTable) -> None:
        """Give the classes of the batch that have no reference their batch mean."""
        new = (table.counts > 0) & ~self.seen.index_select(0, table.classes)
        means = table.means * new[:, None]
        self.means.index_add_(0, table.classes, means.to(self.means))
        self.seen.index_fill_(0, occurring(table), True)

    def _references(
        self, table: ClassTable, labels: Tensor, dtype: torch.dtype
    ) -> References:
        negatives = self.num_negatives
        if negatives is None or negatives >= self.num_classes:
            means, present, targets = self.means, self.seen.clone(), labels
        else:
            drawn = self._draw(negatives)
            means = self.means.index_select(0, torch.cat((table.classes, drawn)))
            others = self.seen.index_select(0, drawn)
            others &= ~torch.isin(drawn, occurring(table))
            multiplicity = others.to(dtype) * (self.num_classes / negatives)
            present = torch.cat(((table.counts > 0).to(dtype), multiplicity))
            targets = table.targets
        known = self.seen.index_select(0, table.classes)
        return References(
            centroids=normalize(means.to(dtype)),
            targets=targets,
            present=present,
            own=None,
            counted=self.seen.index_select(0, labels),
            total=(table.counts * known).sum(),
        )

    def _draw(self, number: int) -> Tensor:
        """Uniform draws from all classes, the same on every rank."""
        device = self.means.device
        generator = torch.Generator(device)
        generator.manual_seed(self.seed * SEED_STRIDE + self._steps)
        return torch.randint(
            self.num_classes, (number,), generator=generator, device=device
        )

    def _move(self, table: ClassTable) -> None:
        """Apply the update, or put it off to the last batch of an accumulation."""
        if self.accumulation_steps > 1:
            sums = table.sums.to(self.pending_sums)
            self.pending_sums.index_add_(0, table.classes, sums)
            self.pending_counts.index_add_(0, table.classes, table.counts.long())
            if self._steps % self.accumulation_steps:
                return
            table = ClassTable(
                self.pending_sums,
                self.pending_counts,
                torch.arange(self.num_classes, device=self.means.device),
                table.targets,
                exact=False,
            )
        old = self.means.index_select(0, table.classes)
        first = self.counts.index_select(0, table.classes) == 0
        share = 1 - self.momentum ** table.counts.to(old)
        share = share.masked_fill(first & (table.counts > 0), 1)
        change = share[:, None] * (table.means.to(old) - old)
        self.means.index_add_(0, table.classes, change)
        self.counts.index_add_(0, table.classes, table.counts.long())
        self.pending_sums.zero_()
        self.pending_counts.zero_()

    def get_extra_state(self) -> Tensor:
        """The number of training batches so far."""
        return torch.tensor(self._steps)

    def set_extra_state(self, state: Tensor) -> None:
        """Go on from there."""
        self._steps = int(state)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Follow a change of device or dtype, but not below float32."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for name in ("means", "pending_sums"):
            buffer: Tensor = getattr(self, name)
            setattr(
                self, name, buffer.to(torch.promote_types(buffer.dtype, torch.float))
            )
        return self

    def extra_repr(self) -> str:
        """The arguments, for ``repr``."""
        return (
            f"num_classes={self.num_classes}, dim={self.dim}, "
            f"momentum={self.momentum}, num_negatives={self.num_negatives}, "
            f"accumulation_steps={self.accumulation_steps}"
        )


def occurring(table: ClassTable) -> Tensor:
    """(R,), the classes of the batch; rows not in use repeat one of them.

    In O(R), whatever the number of classes, and without synchronising with the host.
    """
    used = table.counts > 0
    first = used.to(torch.uint8).argmax(dim=0, keepdim=True)
    return torch.where(used, table.classes, table.classes.index_select(0, first))
