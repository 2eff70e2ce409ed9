"""`MomentumCentroids`: class references that outlive the batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.amp import GradScaler
from torch.distributed import ProcessGroup

from varcon_plugin.centroids import ClassTable, References, class_table
from varcon_plugin.distributed import from_first_rank
from varcon_plugin.draws import uniform_draws
from varcon_plugin.functional import normalize, transforming
from varcon_plugin.sharded import Shard, gather_batch, shard_table, spread_references

__all__ = ["MomentumCentroids", "follow_scaler"]

PART = 65_536  # rows
SAVED = ("means", "counts", "seen", "pending_sums", "pending_counts")
HALF = (torch.float16, torch.bfloat16)


class Before(NamedTuple):
    """Rows of a bank, and what they held."""

    rows: Tensor
    means: Tensor
    counts: Tensor
    seen: Tensor


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

    It moves once in each forward pass of the loss in training mode with gradients
    enabled, and at no other time: not in evaluation mode and not under `torch.no_grad`,
    where samples of classes never seen have loss 0 and are not counted. In a part that
    activation checkpointing recomputes it is an error. A batch with an embedding that
    is not finite has loss NaN and moves nothing. Where only gradients overflow and a
    scaler skips the step, `follow` takes the move back.

    Across ranks every rank applies the same update, so the banks stay equal to the last
    bit; the first batch after a start or a checkpoint begins with the bank of rank 0.
    It is in ``state_dict`` and follows ``to``, but not among the buffers, which DDP
    would broadcast at every step and averaged models would average. Kept in float32 or
    better, also where the module around it is cast to half precision.

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
            accumulation over them needs to equal one larger batch. A checkpoint of
            another number is loaded: what waited in it goes on waiting, or is applied.
        seed: of the draws of ``num_negatives``.
        sharded: spread the bank over the ranks of the default process group, which must
            be there already: each keeps C / W rows and scores the samples of all ranks
            against them (`varcon_plugin.sharded` says what travels). Loss, gradient and
            bank are those of the whole bank. ``state_dict`` then holds DTensors, which
            torch.distributed.checkpoint saves and loads on any number of ranks. Every
            rank must take part in every step. Alone it is the whole bank.

    Attributes:
        means: (C, D), the moving averages; this rank's rows if sharded, as all others.
        units: (C, D), their directions, which are the references.
        counts: (C,), embeddings of each class that have moved its reference.
        seen: (C,) bool, the classes that have a reference.
        steps: (), training batches so far; on the CPU.
        restored: whether the ranks have yet to take over the bank of rank 0.

    Raises:
        ValueError: an argument is out of range.
    """

    means: Tensor
    units: Tensor
    counts: Tensor
    seen: Tensor
    steps: Tensor
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
        sharded: bool = False,
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
        self.shard = Shard.of(num_classes) if sharded else None
        rows = num_classes if self.shard is None else self.shard.rows
        self.means = torch.zeros(rows, dim)
        self._scaler: GradScaler | None = None
        self._scale = 0.0
        self._before: Before | None = None
        self.reset_parameters()

    def follow(self, scaler: GradScaler) -> None:
        """From now on take back the move of a batch whose step ``scaler`` skipped.

        The scale, which falls with every step skipped, is read at the next training
        batch: the host waits there for the last step. Costs a copy of the rows that a
        batch moves, with ``accumulation_steps`` > 1 of the whole bank.

        Args:
            scaler: of the optimizer, the same scale on all ranks.
        """
        self._scaler, self._before = scaler, None

    def reset_parameters(self) -> None:
        """Forget every class, as before the first batch."""
        (rows, dim), like = self.means.shape, self.means
        waiting = rows if self.accumulation_steps > 1 else 0
        self.means = like.new_zeros(rows, dim)
        self.units = like.new_zeros(rows, dim)
        self.counts = like.new_zeros(rows, dtype=torch.int64)
        self.seen = like.new_zeros(rows, dtype=torch.bool)
        self.pending_sums = like.new_zeros(waiting, dim)
        self.pending_counts = like.new_zeros(waiting, dtype=torch.int64)
        self.steps = torch.zeros((), dtype=torch.int64, device="cpu")
        self.restored = True

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        group: ProcessGroup | None,
        sizes: list[int],
    ) -> References:
        """References for ``embeddings`` (N, D), unit rows, and ``labels`` (N,).

        They are views of the bank: what is to outlive the next `move` needs a copy.
        ``group`` and ``sizes`` as for `BatchCentroids`, with the same collectives.

        Raises:
            RuntimeError: the call is recomputed in the backward pass, or moves the bank
                inside a transform of `torch.func`.
        """
        moving = self.training and torch.is_grad_enabled()
        if moving and in_backward_pass():
            raise RuntimeError(
                "MomentumCentroids was called again in the backward pass, after it "
                "had moved: take the loss out of activation checkpointing, its own "
                "memory is that of the embeddings"
            )
        if moving and transforming():
            raise RuntimeError(
                "MomentumCentroids cannot move inside a transform of torch.func (grad, "
                "vmap, ...): call eval() on it, or take torch.autograd"
            )
        with torch.no_grad():
            if self.means.device != embeddings.device:
                self.to(embeddings.device)
            shard, rows = self.shard, labels
            if shard is not None:
                shard.check_group(group)
                sizes = sizes or [len(labels)]
                embeddings, labels = gather_batch(embeddings, labels, sizes, group)
                rows = shard.local(labels)
                table = shard_table(embeddings, rows, shard.rows)
            else:
                table = class_table(embeddings, labels, self.num_classes, group, sizes)
            finite = table.sums.isfinite().all()
            if moving:
                self._follow_scaler(table)
                self._enter(table, finite)
            found = self._references(table, rows, embeddings.dtype, finite)
            if shard is not None:
                found = spread_references(found, embeddings, labels, sizes, group)
            return found._replace(batch=table if moving else None)

    def _follow_scaler(self, table: ClassTable) -> None:
        """Take back the last move if its step was skipped; remember what this moves."""
        if self._scaler is None:
            return
        scale = self._scaler.get_scale()
        if self._before is not None and scale < self._scale:
            rows, means, counts, seen = self._before
            self.means[rows], self.counts[rows], self.seen[rows] = means, counts, seen
            self.units[rows] = normalize(means)
            self.pending_sums.zero_()
            self.pending_counts.zero_()
        self._scale = scale
        if self.accumulation_steps == 1:
            rows = table.classes
        elif int(self.steps) % self.accumulation_steps == 0:
            rows = torch.arange(len(self.means), device=self.means.device)
        else:
            return
        self._before = Before(
            rows, *(x[rows] for x in (self.means, self.counts, self.seen))
        )

    def move(self, batch: ClassTable) -> None:
        """Apply the update with a batch that `forward` gave back, once it was used.

        With ``accumulation_steps`` it is put off to the last batch of an accumulation.
        A batch with a value that is not finite changes nothing, on any rank.
        """
        with torch.no_grad():
            self.steps.add_(1)
            finite = batch.sums.isfinite().all()
            if self.accumulation_steps == 1:
                self._move(batch, finite)
                return
            sums = torch.where(finite, batch.sums, 0).to(self.pending_sums)
            counts = torch.where(finite, batch.counts, 0).long()
            self.pending_sums.index_add_(0, batch.classes, sums)
            self.pending_counts.index_add_(0, batch.classes, counts)
            last = self.steps % self.accumulation_steps == 0
            if torch.compiler.is_compiling() or bool(last):  # on the host: no waiting
                waiting = self.pending_sums, self.pending_counts
                self._apply_table(*waiting, last.to(finite.device, non_blocking=True))

    def _apply_table(self, sums: Tensor, counts: Tensor, condition: Tensor) -> None:
        """Move with ``sums`` (C, D) and ``counts`` (C,) and empty them."""
        every = torch.arange(len(sums), device=sums.device)
        self._move(ClassTable(sums, counts, every, every, exact=False), condition)
        sums.masked_fill_(condition, 0)
        counts.masked_fill_(condition, 0)

    def _enter(self, table: ClassTable, finite: Tensor) -> None:
        """Give the classes of the batch that have no reference their batch mean."""
        old = self.means.index_select(0, table.classes)
        new = (table.counts > 0) & ~self.seen.index_select(0, table.classes) & finite
        self._write(table, torch.where(new[:, None], table.means.to(old), old))
        used = table.used_rows
        rows = table.classes.index_select(0, used)
        entered = (table.counts > 0).index_select(0, used) & finite
        self.seen.index_copy_(0, rows, self.seen.index_select(0, rows) | entered)

    def _references(
        self, table: ClassTable, rows: Tensor, dtype: torch.dtype, finite: Tensor
    ) -> References:
        """References by ``rows`` (N,) of the bank, -1 for those held elsewhere."""
        negatives = self.num_negatives
        if negatives is None or negatives >= self.num_classes:
            units, present, targets = self.units, self.seen.clone(), rows
        else:
            drawn = self._draw(negatives)
            units = self.units.index_select(0, torch.cat((table.classes, drawn)))
            others = self.seen.index_select(0, drawn)
            in_batch = torch.where(table.counts > 0, table.classes, -1)
            others &= ~torch.isin(drawn, in_batch)
            multiplicity = others.to(dtype) * (self.num_classes / negatives)
            present = torch.cat(((table.counts > 0).to(dtype), multiplicity))
            targets = table.targets
        counted = self.seen.index_select(0, rows.clamp(min=0)) & (rows >= 0)
        known = self.seen.index_select(0, table.classes)
        total = (table.counts * known).sum()
        return References(
            centroids=units.to(dtype),
            targets=targets,
            present=present,
            own=None,
            counted=counted | ~finite,
            total=torch.where(finite, total, torch.nan),
        )

    def _draw(self, number: int) -> Tensor:
        """Uniform draws from all classes, the same on every rank and device.

        The rows of those that this rank holds, if the bank is spread over the ranks.
        """
        device = self.means.device
        drawn = uniform_draws(number, self.num_classes, self.steps, self.seed, device)
        if self.shard is not None:
            drawn = self.shard.local(drawn)
            drawn = drawn[drawn >= 0]
        return drawn

    def _move(self, table: ClassTable, condition: Tensor) -> None:
        """Apply the update with ``table`` where ``condition`` (0-dim) holds."""
        old = self.means.index_select(0, table.classes)
        counts = torch.where(condition, table.counts, 0)
        first = self.counts.index_select(0, table.classes) == 0
        share = 1 - self.momentum ** counts.to(old)
        share = share.masked_fill(first & (counts > 0), 1)[:, None]
        moved = torch.lerp(old, table.means.to(old), share)
        self._write(table, torch.where(share > 0, moved, old))
        self.counts.index_add_(0, table.classes, counts.long())

    def _write(self, table: ClassTable, means: Tensor) -> None:
        """Set the rows of the classes of the batch to ``means`` (R, D)."""
        used = table.used_rows
        rows, means = table.classes.index_select(0, used), means.index_select(0, used)
        self.means.index_copy_(0, rows, means)
        self.units.index_copy_(0, rows, normalize(means))

    def _renew_units(self) -> None:
        """Normalise all means, in parts: no second bank, not even for a moment."""
        parts = (torch.split(x, PART) for x in (self.means, self.units))
        for means, units in zip(*parts, strict=True):
            units.copy_(normalize(means))

    def take_from_first_rank(self, group: ProcessGroup) -> None:
        """Start from the bank of rank 0 of ``group``, whatever the others loaded.

        A bank spread over the ranks has a part on each and is left as it is.

        Raises:
            ValueError: it is not the same bank on all ranks.
        """
        if self.shard is not None:
            self.shard.check_size(self.dim, group)
        for name in ("steps",) if self.shard is not None else (*SAVED, "steps"):
            mine: Tensor = getattr(self, name)
            mine.copy_(from_first_rank(mine, group))
        self._renew_units()
        self.restored = False

    def get_extra_state(self) -> Tensor:
        """The number of training batches so far."""
        return self.steps.clone()

    def set_extra_state(self, state: Tensor) -> None:
        """Go on from there."""
        self.steps.fill_(int(state))

    def _save_to_state_dict(
        self, destination: Any, prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for name in SAVED:
            value: Tensor = getattr(self, name)
            if self.shard is not None and len(value):
                value = self.shard.whole(value)
            destination[prefix + name] = value

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Any], prefix: str, *rest: Any
    ) -> None:
        """As for buffers; what waits is applied if it has no room to wait here."""
        _, strict, missing, _, errors = rest
        ours = {prefix + name: name for name in SAVED}
        others = {key: x for key, x in state_dict.items() if key not in ours}
        super()._load_from_state_dict(others, prefix, *rest)
        waiting: list[Tensor] = []
        for key, name in ours.items():
            mine: Tensor = getattr(self, name)
            value = state_dict.get(key)
            if self.shard is not None and len(mine):
                mine = mine[: self.shard.used]
                if value is not None and len(value) == self.num_classes:
                    value = self.shard.part(value)
            if value is None:
                missing += [key] if strict else []
            elif value.shape == mine.shape:
                mine.copy_(value)
            elif name.startswith("pending") and min(len(value), len(mine)) == 0:
                mine.zero_()
                waiting += [value.to(mine, copy=True)] if len(value) else []
            else:
                errors.append(
                    f"size mismatch for {key}: {tuple(value.shape)} in the checkpoint, "
                    f"{tuple(mine.shape)} in this bank"
                )
        if len(waiting) == 2:
            self._apply_table(waiting[0], waiting[1], self.seen.new_ones(()))
        self._renew_units()
        self.restored = True

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        """Follow a change of device or dtype, but not below float32."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        blank = self.means.is_meta
        for name in (*SAVED, "units"):
            old: Tensor = getattr(self, name)
            new = fn(old)
            if new.dtype in HALF:
                new = old.to(new.device, torch.float)
            setattr(self, name, new)
        if blank and not self.means.is_meta:
            self.reset_parameters()
        return self

    def extra_repr(self) -> str:
        """The arguments, for ``repr``."""
        return (
            f"num_classes={self.num_classes}, dim={self.dim}, "
            f"momentum={self.momentum}, num_negatives={self.num_negatives}, "
            f"accumulation_steps={self.accumulation_steps}, "
            f"sharded={self.shard is not None}"
        )


def follow_scaler(module: nn.Module, scaler: GradScaler) -> None:
    """`MomentumCentroids.follow` for every bank in ``module``."""
    for part in module.modules():
        if isinstance(part, MomentumCentroids):
            part.follow(scaler)


def in_backward_pass() -> bool:
    """Whether autograd is calling, as it does to recompute a checkpointed part."""
    return not torch.compiler.is_compiling() and torch._C._current_graph_task_id() != -1
