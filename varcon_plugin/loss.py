"""`VarConLoss`: the objective as a module."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup
from torch.utils.hooks import RemovableHandle

from varcon_plugin.arguments import (
    argument_error,
    by_sample,
    check_on_device,
    fail_in_graph,
    no_terms,
    reference_error,
)
from varcon_plugin.caller import warn_caller
from varcon_plugin.centroids import BatchCentroids, References
from varcon_plugin.distributed import active_group, agree, world_size
from varcon_plugin.functional import VarConTerms, normalize, transforming
from varcon_plugin.fused import fused_varcon_terms
from varcon_plugin.momentum import MomentumCentroids
from varcon_plugin.sharded import observed_references, sharded_varcon_terms

__all__ = ["Observation", "VarConLoss"]

TEMPERATURE_RANGE = (1e-18, 1e18)  # its square and inverse square are float32


class Observation(NamedTuple):
    """What one forward pass compared and found, for `VarConLoss.register_observer`.

    Detached throughout. The references of a bank move after the observers have been
    called: keep a copy of what is to stay.

    Attributes:
        embeddings: (N, D), this rank's, unit rows.
        labels: (N,), int64, as the caller numbers them.
        references: what the embeddings were compared with.
        terms: as `VarConLoss.forward_components` returns them.
        group: the ranks that share the batch; None for this one alone.
    """

    embeddings: Tensor
    labels: Tensor
    references: References
    terms: VarConTerms
    group: ProcessGroup | None

    def detach(self) -> Observation:
        """The same without a graph."""
        references = References(*map(detached, self.references[:6]))
        terms = VarConTerms(*map(detached, self.terms))
        return Observation(
            self.embeddings.detach(), self.labels, references, terms, self.group
        )


class VarConLoss(nn.Module):
    """Variational supervised contrastive loss (https://arxiv.org/abs/2506.07413).

    ``embeddings`` are normalised inside; class references are the unit-length class
    means of the batch, over all ranks. Computed in float32 or better whatever the input
    or autocast; the gradient comes back in the dtype of the input.

    Across ranks: with a process group, the DDP-averaged gradient equals the gradient of
    the single-process loss on the concatenated batch, also for batches of different
    size and for classes that some ranks lack. Each rank returns
    ``world_size * local_sum / global_count``, so the mean of the returned values over
    the ranks is the global loss. Every rank must call.

    Which references to take depends on the images of a class in the global batch. More
    than about three: the class means, as published. Fewer, that is a batch smaller than
    three times the number of classes: ``centroids=MomentumCentroids(...)``, which keeps
    references from batch to batch. docs/centroids.md has the measurements; they end at
    2.6 images a class.

    Args:
        temperature: tau_1, > 0. Paper's code: 0.1.
        epsilon: tau2 moves in [temperature - epsilon, temperature + epsilon];
            0 <= epsilon < temperature. Paper's code: 0.02. 0 fixes tau2.
        centroids: where class references come from; None is the batch's class means,
            for which the next three arguments are.
        num_classes: labels are in [0, num_classes): no `torch.unique`, no host
            synchronisation, static shapes. None: any integer labels but -1 and -100.
        leave_one_out: take each sample out of its own class mean, which otherwise
            inflates its confidence where a class has few samples (ours). Samples
            without a classmate in the global batch get loss 0, gradient 0 and are not
            counted in the mean.
        detach_centroids: stop the gradient at the class means, as published. False
            lets it flow, in O(N C) memory.
        reduction: ``"mean"`` or ``"sum"`` over the global batch, or ``"none"`` for this
            rank's per-sample losses (N,). Unscaled then: reduce them as
            ``world_size * (weight * loss).sum() / global_count``.
        gather_distributed: False computes each rank's loss from its own batch alone.
            (In `varcon_plugin.lightly` that is the default, as in lightly's losses.)
        process_group: the ranks that share a batch; None is the default group.

    Raises:
        ValueError: an argument is out of range.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        epsilon: float = 0.02,
        *,
        centroids: MomentumCentroids | None = None,
        num_classes: int | None = None,
        leave_one_out: bool = False,
        detach_centroids: bool = True,
        reduction: Literal["mean", "sum", "none"] = "mean",
        gather_distributed: bool = True,
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        low, high = TEMPERATURE_RANGE
        if not low <= temperature <= high:
            raise ValueError(
                f"temperature must be > 0, in [{low}, {high}], got {temperature}"
            )
        if not 0 <= epsilon < temperature:
            raise ValueError(
                f"epsilon must be in [0, temperature), got {epsilon} with temperature "
                f"{temperature}"
            )
        if num_classes is not None and num_classes < 1:
            raise ValueError(f"num_classes must be None or >= 1, got {num_classes}")
        if reduction not in ("mean", "sum", "none"):
            raise ValueError(
                f'reduction must be "mean", "sum" or "none", got {reduction!r}'
            )
        if process_group is not None and not gather_distributed:
            raise ValueError(
                "process_group names the ranks to gather from, but gather_distributed "
                "is False: give one or the other"
            )
        self.temperature = temperature
        self.epsilon = epsilon
        self.reduction = reduction
        self.gather_distributed = gather_distributed
        self.process_group = process_group
        of_batch = BatchCentroids(num_classes, leave_one_out, detach_centroids)
        if centroids is not None and of_batch != BatchCentroids():
            raise ValueError(
                "num_classes, leave_one_out and detach_centroids are for the class "
                f"means of the batch, not for centroids={type(centroids).__name__}: "
                "leave them out"
            )
        self.centroids = of_batch if centroids is None else centroids
        self._warned = False
        self._observers: OrderedDict[int, Callable[[Observation], None]] = OrderedDict()

    def register_observer(
        self, observer: Callable[[Observation], None]
    ) -> RemovableHandle:
        """Call ``observer`` after every forward pass, on every rank.

        It sees what the loss computed, at no further cost, and cannot change it. Under
        `torch.compile` it breaks the graph, as a forward hook does.

        Returns:
            A handle whose ``remove()`` ends it.
        """
        handle = RemovableHandle(self._observers)
        disable: Any = torch.compiler.disable  # untyped upstream
        self._observers[handle.id] = disable(observer)
        return handle

    if TYPE_CHECKING:  # what `nn.Module.__call__` leaves open

        def __call__(
            self,
            embeddings: Tensor,
            labels: Tensor,
            indices_tuple: Any = None,
            *,
            reference_embeddings: Tensor | None = None,
        ) -> Tensor:
            """`forward`."""

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor,
        indices_tuple: Any = None,
        *,
        reference_embeddings: Tensor | None = None,
    ) -> Tensor:
        """The loss: a scalar, or (N,) with ``reduction="none"``.

        Args:
            embeddings: (N, D), floating; all views of all images of this rank. Or
                (B, V, D), the V views of each of B images: as (B * V, D).
            labels: (N,), integer class ids, in the order of ``embeddings``; or (B,).
                There is no ``ignore_index``: leave samples without a label out. By -1
                and -100 others mark them, so these are an error.
            indices_tuple: None, as pytorch-metric-learning's trainers and
                ``MultipleLosses`` pass where there is no miner.
            reference_embeddings: as ``embeddings``, what stands for each row in its
                class reference, such as another encoder's embedding of the same image
                (ours). None: the embeddings themselves.

        Raises:
            TypeError: an argument is not a tensor or of the wrong dtype.
            ValueError: shapes are wrong, lengths differ, the batch is empty, a label is
                out of range, or a miner found pairs.
            RuntimeError: another rank's arguments are wrong.
        """
        if indices_tuple is not None:
            raise ValueError(
                "indices_tuple must be None: VarConLoss compares with one reference a "
                "class, which leaves no pairs or triplets to mine; use it without a "
                f"miner, got {type(indices_tuple).__name__}"
            )
        terms = self.forward_components(
            embeddings, labels, reference_embeddings=reference_embeddings
        )
        return terms.loss

    def forward_components(
        self,
        embeddings: Tensor,
        labels: Tensor,
        *,
        reference_embeddings: Tensor | None = None,
    ) -> VarConTerms:
        """The loss as `forward` returns it, with this rank's per-sample terms.

        Only ``loss`` carries a gradient; kl, nll, confidence and tau2 are (N,),
        detached.
        """
        group = active_group(self.process_group) if self.gather_distributed else None
        given = reference_embeddings
        if isinstance(given, Tensor) and given.ndim == 3:
            reference_embeddings = by_sample(given, labels)[0]
        embeddings, labels = by_sample(embeddings, labels)
        error = argument_error(
            embeddings,
            labels,
            self.centroids.num_classes,
            getattr(self.centroids, "dim", None),
        ) or reference_error(embeddings, reference_embeddings)
        sizes: list[int] = []
        dtype = torch.float32
        if group is not None and not torch.compiler.is_compiling():
            bank = self.centroids
            restored = isinstance(bank, nn.Module) and bank.restored
            sizes, dtype, restored = agree(error, embeddings, group, restored)
            if isinstance(bank, nn.Module) and restored:
                bank.to(embeddings.device).take_from_first_rank(group)
        elif group is None and error is not None:
            raise error
        if error is None:
            check_on_device(labels, self.centroids.num_classes, group)
        elif group is not None:  # compiling: a rank that raised would leave the others
            fail_in_graph(embeddings, group)
            return no_terms()

        with torch.autocast(embeddings.device.type, enabled=False):
            dtype = torch.promote_types(embeddings.dtype, dtype)
            unit = normalize(embeddings.to(dtype))
            labels = labels.to(embeddings.device, torch.int64)
            averaged = unit
            if reference_embeddings is not None:
                averaged = normalize(reference_embeddings.to(unit))
            references = self.centroids(averaged, labels, group, sizes)
            terms = self._terms(unit, references)
            terms = self._reduce(terms, references, world_size(group))
            if self._observers:
                shown = observed_references(references)
                self._show(Observation(unit, labels, shown, terms, group).detach())
            if isinstance(self.centroids, nn.Module) and references.batch is not None:
                self.centroids.move(references.batch)
            return terms

    def _show(self, seen: Observation) -> None:
        for observer in tuple(self._observers.values()):
            observer(seen)

    def _terms(self, unit: Tensor, references: References) -> VarConTerms:
        """Each sample's terms: the objective, of unit rows and what they meet."""
        settings = {"temperature": self.temperature, "epsilon": self.epsilon}
        if references.spread is not None:
            return sharded_varcon_terms(unit, references, **settings)
        return fused_varcon_terms(
            unit,
            references.targets,
            references.centroids,
            **settings,
            present=references.present,
            own=references.own,
        )

    def _reduce(
        self, terms: VarConTerms, references: References, ranks: int
    ) -> VarConTerms:
        loss, kl, nll, confidence, tau2 = terms
        if references.counted is not None:
            alone = ~references.counted
            loss, kl, nll = (x.masked_fill(alone, 0) for x in (loss, kl, nll))
        if self.reduction == "mean":
            loss = loss.sum() * (ranks / references.total.clamp(min=1))
        elif self.reduction == "sum":
            loss = loss.sum() * ranks
        self._warn_if_vacuous(references)
        detached = (x.detach() for x in (kl, nll, confidence, tau2))
        return VarConTerms(loss, *detached)

    def _warn_if_vacuous(self, references: References) -> None:
        """Say once that there is nothing to learn from this batch, if known for free.

        Under `torch.compile`, and on an accelerator with ``num_classes``, it is not.
        """
        if self._warned or torch.compiler.is_compiling() or transforming():
            return
        present, total = references.present, references.total
        synchronises = total.device.type != "cpu"
        if present is None:
            classes = len(references.centroids)
        elif synchronises:
            return
        elif references.spread is not None:
            classes = int(references.spread.number.nan_to_num())
        else:
            classes = int(present.sum())
        if classes == 1:
            reason = "the batch holds a single class"
        elif references.counted is not None and not synchronises and total == 0:
            reason = "no sample of the batch has a classmate (leave_one_out)"
        else:
            return
        self._warned = True
        warn_caller(
            f"VarConLoss is 0 with gradient 0: {reason}. Use larger or class-balanced "
            "batches. Said once."
        )

    def extra_repr(self) -> str:
        """The arguments, for ``repr``."""
        return (
            f"temperature={self.temperature}, epsilon={self.epsilon}, "
            f"centroids={self.centroids}, reduction={self.reduction!r}, "
            f"gather_distributed={self.gather_distributed}"
        )


def detached(value: Tensor | None) -> Any:
    """``value`` without a graph; None for None."""
    return None if value is None else value.detach()
