"""`balanced_assignment`: every row to a class, every class as often (1306.0895)."""

from __future__ import annotations

from torch import Tensor
from torch.distributed import ProcessGroup

from varcon_plugin.distributed import gather_equal

__all__ = ["balanced_assignment"]


def balanced_assignment(
    logits: Tensor,
    *,
    iterations: int,
    queued: Tensor | None = None,
    group: ProcessGroup | None = None,
) -> Tensor:
    """Log-probabilities (N, C) that share all rows equally among the classes.

    Sinkhorn's iteration in log space: exp(logits) is scaled by turns so that every
    class receives the same total and every row sums to 1, which it does exactly, being
    last; the classes as nearly as ``iterations`` reach.

    Args:
        logits: (N, C), this rank's.
        iterations: >= 1, each with one collective of C numbers across ranks.
        queued: (Q, C), further rows that take part, the same on every rank.
        group: the ranks that share the rows; None for this one alone.
    """
    rows = logits.new_zeros(len(logits), 1)
    others = None if queued is None else queued.new_zeros(len(queued), 1)
    for _ in range(iterations):
        classes = (logits - rows).logsumexp(dim=0)
        if group is not None:
            classes = gather_equal(classes, group).logsumexp(dim=0)
        if queued is not None and others is not None:
            classes = classes.logaddexp((queued - others).logsumexp(dim=0))
            others = (queued - classes).logsumexp(dim=1, keepdim=True)
        rows = (logits - classes).logsumexp(dim=1, keepdim=True)
    return logits - classes - rows
