"""`PseudoLabels`: who says which class an image is, where nobody labelled it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from varcon_plugin.distributed import active_group, agree, gather_labels
from varcon_plugin.functional import normalize
from varcon_plugin.momentum import MomentumCentroids
from varcon_plugin.sinkhorn import balanced_assignment

__all__ = ["Assignment", "PseudoLabels", "balanced_assignment"]


class Assignment(NamedTuple):
    """The latent classes of the embeddings of one batch of this rank.

    Attributes:
        labels: (V * N,), the class each embedding is trained towards: the one that the
            next view of the same image was assigned.
        own: (V * N,), the class each embedding was assigned itself.
        entropy: (V * N,), of its soft assignment, in [0, ln C]; 0 is certain.
    """

    labels: Tensor
    own: Tensor
    entropy: Tensor


class PseudoLabels(nn.Module):
    """Balanced assignment of images to the classes of a `MomentumCentroids` bank.

    The embeddings of a batch, best a teacher's, are matched with the references of the
    bank by the Sinkhorn iteration (https://arxiv.org/abs/1306.0895), so that over the
    batches of all ranks and the queue every class receives the same share. That is
    what keeps all images from ending in one class. Each view is then labelled with the
    class of the next view of its image (https://arxiv.org/abs/2006.09882), so that a
    view has to be recognised from another. Labels carry no gradient.

    On the first call the bank is given random directions: every class counts from the
    start, and takes the place of its first members at the first update.

    Across ranks: the labels equal those of one process on the concatenated batch, up to
    the order in which floating-point sums are taken, also for batches of different
    size. Every rank must call. A rank sends C numbers an iteration, and its embeddings
    if there is a queue, which all ranks then hold alike.

    Args:
        num_classes: C, of the bank.
        dim: D, of the embeddings.
        sharpness: divides the cosines; > 0. Small is sharp: far below 0.05 only the
            nearest pairs count, and balance is reached late or never.
        iterations: of Sinkhorn, >= 1.
        queue_size: embeddings of earlier batches that take part in the balance, for
            batches too small to fill every class; 0 is none.
        queue_after: calls before the queue takes part; it is filled from the start.
        process_group: the ranks that share a batch; None is the default group.

    Attributes:
        queue: (queue_size, D), the last embeddings of all ranks, newest first.
        calls: in training mode, so far.

    Raises:
        ValueError: an argument is out of range.
    """

    queue: Tensor

    def __init__(
        self,
        num_classes: int,
        dim: int,
        *,
        sharpness: float = 0.05,
        iterations: int = 3,
        queue_size: int = 0,
        queue_after: int = 0,
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        for name, value, low in (
            ("num_classes", num_classes, 2),
            ("dim", dim, 1),
            ("iterations", iterations, 1),
            ("queue_size", queue_size, 0),
            ("queue_after", queue_after, 0),
        ):
            if value < low:
                raise ValueError(f"{name} must be >= {low}, got {value}")
        if not sharpness > 0:
            raise ValueError(f"sharpness must be > 0, got {sharpness}")
        self.num_classes = num_classes
        self.dim = dim
        self.sharpness = sharpness
        self.iterations = iterations
        self.queue_size = queue_size
        self.queue_after = queue_after
        self.process_group = process_group
        self.calls = 0  # both lie in the extra state
        self._queued = 0
        self.register_buffer("queue", torch.zeros(queue_size, dim))

    def check_bank(self, bank: MomentumCentroids) -> None:
        """Raise ValueError if ``bank`` is not one of these classes and dimensions."""
        for name in ("num_classes", "dim"):
            mine, its = getattr(self, name), getattr(bank, name)
            if mine != its:
                raise ValueError(
                    f"{name} of the bank must be that of the pseudo-labels, {mine}, "
                    f"got {its}"
                )

    def check_batch(self, embeddings: int) -> None:
        """Raise ValueError if so many embeddings and the queue cannot fill the classes.

        Args:
            embeddings: of a batch, over all ranks and views.
        """
        room = embeddings + self.queue_size
        if self.num_classes > room:
            raise ValueError(
                f"num_classes must be at most the embeddings that are balanced, got "
                f"{self.num_classes} classes with {embeddings} embeddings in a batch "
                f"(images x views x ranks) and a queue of {self.queue_size}; take "
                "fewer classes, a larger batch or a queue"
            )

    @torch.no_grad()
    def forward(
        self, embeddings: Tensor, bank: MomentumCentroids, views: int = 2
    ) -> Assignment:
        """The classes of ``embeddings``; in training mode the queue moves on.

        Args:
            embeddings: (V * N, D), this rank's, all of view 0 first; normalised here.
            bank: whose references are the classes. Its first call gives it directions;
                otherwise nothing here moves it.
            views: V, >= 2.

        Raises:
            ValueError: shapes are wrong, there is one view, or there are more classes
                than the batch and the queue can fill.
            RuntimeError: another rank's arguments are wrong.
        """
        group = active_group(self.process_group)
        error = self._argument_error(embeddings, bank, views)
        sizes = [len(embeddings)]
        if group is not None:
            sizes = agree(error, embeddings, group).sizes
        elif error is not None:
            raise error
        self.check_batch(sum(sizes))
        with torch.autocast(embeddings.device.type, enabled=False):
            dtype = torch.promote_types(embeddings.dtype, torch.float32)
            unit = finite_rows(normalize(embeddings.detach().to(dtype)))
            if self.training and self.calls == 0:
                scatter(bank)
            logits = bank_logits(unit, bank) / self.sharpness
            queued = None
            if self._queued and self.calls >= self.queue_after:
                rows = self.queue[: self._queued].to(dtype)
                queued = bank_logits(rows, bank) / self.sharpness
            log_share = balanced_assignment(
                logits, iterations=self.iterations, queued=queued, group=group
            )
            if self.training:
                self.calls += 1
                self._enqueue(by_image(unit, views), sizes, group)
            own = log_share.argmax(dim=1)
            entropy = torch.special.entr(log_share.exp()).sum(dim=1)
            labels = own.view(views, -1).roll(-1, dims=0).flatten()
            return Assignment(labels, own, entropy)

    def _argument_error(
        self, embeddings: Tensor, bank: MomentumCentroids, views: int
    ) -> Exception | None:
        if embeddings.ndim != 2 or embeddings.shape[1] != self.dim:
            return ValueError(
                f"embeddings must be (views * N, {self.dim}), got shape "
                f"{tuple(embeddings.shape)}"
            )
        if views < 2:
            return ValueError(
                f"views must be at least 2, one labels the other, got {views}"
            )
        if len(embeddings) == 0 or len(embeddings) % views:
            return ValueError(
                f"embeddings must be {views} views of the same images, got "
                f"{len(embeddings)} rows"
            )
        try:
            self.check_bank(bank)
        except ValueError as error:
            return error
        return None

    def _enqueue(
        self, unit: Tensor, sizes: list[int], group: ProcessGroup | None
    ) -> None:
        """Put the batch of all ranks in front of the queue."""
        if self.queue_size == 0:
            return
        if group is not None:
            unit, _ = gather_labels(unit, sizes, group)
        new = unit[: self.queue_size].to(self.queue)
        kept = self.queue[: self.queue_size - len(new)]
        self.queue.copy_(torch.cat((new, kept)))
        self._queued = min(self.queue_size, self._queued + len(new))

    def get_extra_state(self) -> Tensor:
        """Calls so far, and rows of the queue in use."""
        return torch.tensor((self.calls, self._queued))

    def set_extra_state(self, state: Tensor) -> None:
        """Go on from there."""
        self.calls, self._queued = state.tolist()

    def extra_repr(self) -> str:
        """The arguments, for ``repr``."""
        return (
            f"num_classes={self.num_classes}, dim={self.dim}, "
            f"sharpness={self.sharpness}, iterations={self.iterations}, "
            f"queue_size={self.queue_size}, queue_after={self.queue_after}"
        )


def finite_rows(unit: Tensor) -> Tensor:
    """``unit`` (N, D) with rows that are not finite set to zero, alike to all classes.

    So they spoil neither the balance nor the queue; what they do to the loss is for
    the loss to say.
    """
    finite = unit.isfinite().all(dim=1, keepdim=True)
    return torch.where(finite, unit, 0)


def by_image(rows: Tensor, views: int) -> Tensor:
    """Rows (V * N, D) in the order of images, so that ranks join to the whole batch."""
    return rows.view(views, -1, rows.shape[1]).transpose(0, 1).flatten(0, 1)


def bank_logits(unit: Tensor, bank: MomentumCentroids) -> Tensor:
    """Cosines (N, C) of unit rows (N, D) with the references of ``bank``."""
    return unit @ bank.units.to(unit).T


def scatter(bank: MomentumCentroids) -> None:
    """Give classes of ``bank`` that were never seen random directions.

    From the bank's own seed, so that they are the same on every rank. The first update
    of such a class replaces its direction by the mean of its members.
    """
    generator = torch.Generator().manual_seed(bank.seed)
    directions = normalize(torch.randn(bank.means.shape, generator=generator))
    unseen = ~bank.seen[:, None]
    bank.means.copy_(torch.where(unseen, directions.to(bank.means), bank.means))
    bank.units.copy_(normalize(bank.means))
    bank.seen.fill_(True)
