"""A bank spread over the ranks: its rows stay where they are, the batch travels.

Rank k of W holds rows [k R, (k + 1) R) of the C references, R = ceil(C / W), as
`torch.chunk` and DTensor's ``Shard(0)`` divide them. Every rank scores the samples of
all ranks against its own rows. What the objective needs of the whole bank, the
log-sum-exp, the true logit, the sum of the references and how many there are, is
combined over the ranks, and so is the gradient; the rest is elementwise.

What a rank hands to collectives in a step, with M embeddings of dimension D in the
global batch and N the most on a rank, in numbers:

========================================  ==============  ===========================
sizes of the batches (`agree`)            all-gather      4
labels                                    all-gather      N
embeddings                                all-gather      N D
samples known, references: sum, number    all-reduce      M + D + 2
largest log-sum-exp                       all-reduce      M
shares of the softmax, true logits        all-reduce      2 M
gradient                                  all-to-all      M D
========================================  ==============  ===========================

None of it grows with C. Without a gradient to compute the last is left out.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.distributed import ProcessGroup

from varcon_plugin.centroids import ClassTable, GlobalBatch, References, class_table
from varcon_plugin.distributed import (
    active_group,
    gather_equal,
    gather_labels,
    max_across_ranks,
    message_device,
    rank_of,
    scatter_sum,
    sum_across_ranks,
    world_size,
)
from varcon_plugin.functional import VarConTerms
from varcon_plugin.fused import attend_to_others, terms_of_logits

__all__ = ["Shard", "observed_references", "sharded_varcon_terms"]


class Shard(NamedTuple):
    """Which rows of a bank this rank holds.

    Attributes:
        rank: of this process, and
        ranks: how many share the bank.
        num_classes: C, of the whole bank.
    """

    rank: int
    ranks: int
    num_classes: int

    @classmethod
    def of(cls, num_classes: int) -> Shard:
        """This process's share among the ranks of the default process group."""
        group = active_group()
        return cls(rank_of(group), world_size(group), num_classes)

    @property
    def rows(self) -> int:
        """R, held on every rank; those beyond C stand for no class."""
        return -(-self.num_classes // self.ranks)

    @property
    def start(self) -> int:
        """First row, as the whole bank counts them."""
        return self.rank * self.rows

    @property
    def used(self) -> int:
        """How many rows stand for a class."""
        return max(0, min(self.rows, self.num_classes - self.start))

    def local(self, classes: Tensor) -> Tensor:
        """Row of each class on this rank; -1 for those held elsewhere."""
        rows = classes - self.start
        return torch.where((rows >= 0) & (rows < self.rows), rows, -1)

    def check_group(self, group: ProcessGroup | None) -> None:
        """Raise ValueError if ``group`` is not the ranks that share the bank."""
        if world_size(group) != self.ranks:
            raise ValueError(
                f"the bank is spread over the {self.ranks} ranks that the default "
                f"process group had when it was made, but the loss runs on "
                f"{world_size(group)}: make it after init_process_group, and leave "
                "process_group and gather_distributed as they are"
            )

    def check_size(self, dim: int, group: ProcessGroup) -> None:
        """Raise ValueError, on all ranks, if C or D differ between them."""
        mine = torch.tensor([self.num_classes, dim], device=message_device(group))
        sizes = gather_equal(mine, group).T.tolist()
        for what, values in zip(("num_classes", "dim"), sizes, strict=True):
            if len(set(values)) > 1:
                raise ValueError(
                    f"{what} of a bank spread over the ranks must be the same on all "
                    f"of them, got {values} on ranks 0 to {self.ranks - 1}"
                )

    def whole(self, rows: Tensor) -> Tensor:
        """This rank's ``rows`` (R, ...) as its part of a DTensor (C, ...).

        It shares their memory. No rank ever holds all of it, and torch's distributed
        checkpoints read it on any number of ranks. A rank alone gets a plain tensor.
        """
        part = rows[: self.used]
        if self.ranks == 1:
            return part
        from torch.distributed.device_mesh import DeviceMesh
        from torch.distributed.tensor import DTensor
        from torch.distributed.tensor import Shard as Placement

        assert dist.group.WORLD is not None
        mesh = DeviceMesh.from_group(dist.group.WORLD, rows.device.type)
        shape = torch.Size((self.num_classes, *rows.shape[1:]))
        stride = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(
            part, mesh, [Placement(0)], run_check=False, shape=shape, stride=stride
        )

    def part(self, value: Tensor) -> Tensor:
        """This rank's rows of ``value`` (C, ...), a DTensor so divided or all of it."""
        to_local = getattr(value, "to_local", None)
        if to_local is not None:
            local: Tensor = to_local()
            return local
        return value[self.start : self.start + self.used]


def gather_batch(
    embeddings: Tensor, labels: Tensor, sizes: list[int], group: ProcessGroup | None
) -> tuple[Tensor, Tensor]:
    """Embeddings (M, D) and labels (M,) of all ranks, in rank order."""
    if group is None:
        return embeddings.detach(), labels
    labels, _ = gather_labels(labels, sizes, group)
    return gather_labels(embeddings.detach(), sizes, group)[0], labels


def shard_table(embeddings: Tensor, rows: Tensor, num_rows: int) -> ClassTable:
    """The classes of a global batch that this rank holds, by their row here.

    ``rows`` (M,) is -1 for samples of other classes; so are their targets. A value that
    is not finite, whoever's class it is of, makes the sums of all ranks NaN.
    """
    elsewhere = rows < 0
    sums, counts, classes, targets, _ = class_table(
        embeddings, rows.masked_fill(elsewhere, num_rows), num_rows + 1, None, []
    )
    other = classes == num_rows
    sums = sums.masked_fill(other[:, None], 0)
    return ClassTable(
        sums.masked_fill(~embeddings.isfinite().all(), torch.nan),
        counts.masked_fill(other, 0),
        classes.masked_fill(other, 0),
        targets.masked_fill(elsewhere, -1),
        exact=False,
    )


def spread_references(
    found: References,
    embeddings: Tensor,
    labels: Tensor,
    sizes: list[int],
    group: ProcessGroup | None,
) -> References:
    """References of this rank's samples, from this rank's for the samples of all ranks.

    ``embeddings`` (M, D) and ``labels`` (M,) are those of `gather_batch`.
    """
    assert found.present is not None
    assert found.counted is not None
    weights = found.present.to(embeddings)
    numbers = (
        found.counted.to(embeddings),
        torch.mv(found.centroids.T, weights),
        weights.sum()[None],
        found.total.to(embeddings)[None],
    )
    counted, sum_, number, total = torch.split(
        sum_across_ranks(torch.cat(numbers), group), [len(x) for x in numbers]
    )
    batch = GlobalBatch(
        embeddings, labels, found.targets, sizes, group, sum_, number[0]
    )
    return found._replace(
        targets=found.targets[batch.mine],
        counted=counted[batch.mine] > 0,
        total=total[0],
        spread=batch,
    )


def observed_references(references: References) -> References:
    """What observers may see in place of references spread over the ranks.

    Those of the classes of the global batch, on every rank, in one all-reduce of
    (their number) (D + 1) numbers. Every rank must call.
    """
    batch = references.spread
    if batch is None:
        return references
    classes, rows = torch.unique(batch.labels, return_inverse=True)
    assert references.present is not None
    here = batch.targets >= 0
    table = batch.embeddings.new_zeros(len(classes), batch.embeddings.shape[1] + 1)
    found = batch.targets[here]
    table[rows[here], :-1] = references.centroids[found]
    table[rows[here], -1] = references.present[found].to(table)
    table = sum_across_ranks(table, batch.group)
    return references._replace(
        centroids=table[:, :-1],
        targets=rows[batch.mine],
        present=table[:, -1] > 0,
        spread=None,
    )


def sharded_varcon_terms(
    embeddings: Tensor, references: References, *, temperature: float, epsilon: float
) -> VarConTerms:
    """`fused_varcon_terms` of this rank's ``embeddings`` against the whole bank.

    Only ``loss`` carries a gradient, to ``embeddings`` alone; a second derivative is an
    error. Every rank must call, all with or all without a gradient to compute.
    """
    batch, present = references.spread, references.present
    assert batch is not None
    assert present is not None
    gradient = torch.is_grad_enabled() and embeddings.requires_grad
    inputs = (batch, references.centroids, present, temperature, epsilon, gradient)
    if gradient:
        return VarConTerms(*_ShardedTerms.apply(embeddings, *inputs))
    return _evaluate(*inputs)[0]


class _ShardedTerms(torch.autograd.Function):
    """Computes the gradient beside the value; backward only scales it."""

    @staticmethod
    def forward(ctx: Any, embeddings: Tensor, *inputs: Any) -> VarConTerms:
        terms, gradient = _evaluate(*inputs)
        ctx.save_for_backward(gradient)
        ctx.mark_non_differentiable(*terms[1:])
        return terms

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "VarConLoss has no second derivative with a bank spread over the ranks "
                "(sharded=True): take the whole bank, or leave create_graph out"
            )
        (gradient,) = ctx.saved_tensors
        return grad_loss[:, None] * gradient, None, None, None, None, None, None


def _evaluate(
    batch: GlobalBatch,
    centroids: Tensor,
    present: Tensor,
    temperature: float,
    epsilon: float,
    gradient: bool,
) -> tuple[VarConTerms, Tensor | None]:
    """This rank's terms, and the gradient of their loss if asked for."""
    embeddings, targets, group = batch.embeddings, batch.targets, batch.group
    weighted = torch.empty_like(embeddings) if gradient else None
    weights = present.to(centroids)
    lse, norm = attend_to_others(
        embeddings, targets, centroids, present, weights, temperature, weighted
    )
    here = (targets >= 0)[:, None]
    own = F.embedding(targets.clamp(min=0), centroids).masked_fill(~here, 0)  # w_r
    true = (embeddings * own).sum(dim=1, keepdim=True) / temperature
    top = max_across_ranks(lse, group).clamp(min=-2 / temperature)  # finite
    share = (lse - top).exp()
    both = sum_across_ranks(torch.cat((share, true), dim=1), group)
    mass, true = both[:, :1], both[:, 1:]
    num_others = batch.number - 1
    mean_logit = torch.mv(embeddings, batch.sum)[:, None] / temperature - true
    terms, (toward, away, each) = terms_of_logits(
        true,
        top + mass.log(),
        mean_logit / num_others.clamp(min=1),
        num_others,
        temperature,
        epsilon,
    )
    terms = VarConTerms(*(x[batch.mine] for x in terms))
    if weighted is None:
        return terms, None

    share = share / mass.masked_fill(mass == 0, 1)  # of this rank in the softmax
    partial = weighted.mul_(toward * share / norm).addcmul_(own, away - toward + each)
    grad = scatter_sum(partial, batch.sizes, group)
    return terms, grad.addcmul_(batch.sum, each[batch.mine], value=-1)
