"""`VarConLoss` with the call signature of lightly's losses."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor
from torch.distributed import ProcessGroup

import varcon_plugin.loss
from varcon_plugin.arguments import argument_error
from varcon_plugin.caller import warn_caller
from varcon_plugin.distributed import active_group, agree
from varcon_plugin.functional import VarConTerms
from varcon_plugin.momentum import MomentumCentroids

__all__ = ["VarConLoss"]

USAGE = "criterion(z0, z1, labels), where labels is batch[1]"


class VarConLoss(varcon_plugin.loss.VarConLoss):
    """Variational supervised contrastive loss, called as lightly's losses are.

    The core's `varcon_plugin.VarConLoss` to the last bit: views are concatenated, all
    of view 0 first, and the labels repeated for each.

    Args:
        temperature: tau_1, > 0.
        epsilon: tau2 moves in [temperature - epsilon, temperature + epsilon];
            0 <= epsilon < temperature.
        gather_distributed: True takes the class means over the batches of all ranks:
            the DDP-averaged gradient then is that of one process on the whole batch.
            False (as in most of lightly's losses) takes each rank's batch alone, and
            says so once.
        centroids: as for `varcon_plugin.VarConLoss`, and so are all that follow.
        num_classes: see there.
        leave_one_out: see there.
        detach_centroids: see there.
        reduction: see there.
        process_group: see there.

    Examples:
        >>> criterion = VarConLoss()
        >>> for (x0, x1), labels, filenames in dataloader:
        >>>     loss = criterion(model(x0), model(x1), labels)
    """

    def __init__(
        self,
        temperature: float = 0.1,
        epsilon: float = 0.02,
        gather_distributed: bool = False,
        *,
        centroids: MomentumCentroids | None = None,
        num_classes: int | None = None,
        leave_one_out: bool = False,
        detach_centroids: bool = True,
        reduction: Literal["mean", "sum", "none"] = "mean",
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__(
            temperature,
            epsilon,
            centroids=centroids,
            num_classes=num_classes,
            leave_one_out=leave_one_out,
            detach_centroids=detach_centroids,
            reduction=reduction,
            gather_distributed=gather_distributed,
            process_group=process_group,
        )
        self._warned_local = False

    if TYPE_CHECKING:  # what `nn.Module.__call__` leaves open

        def __call__(
            self,
            *views: Tensor,
            labels: Tensor | None = None,
            reference_embeddings: Tensor | None = None,
        ) -> Tensor:
            """`forward`."""

    def forward(
        self,
        *views: Tensor,
        labels: Tensor | None = None,
        reference_embeddings: Tensor | None = None,
    ) -> Tensor:
        """The loss: a scalar, or (views * N,) with ``reduction="none"``.

        Args:
            views: (N, D) each, one or more, then ``labels`` unless given by name. With
                a single view (M, D), which may hold several, ``labels`` is (M,).
            labels: (N,), integer class ids, one for each image.
            reference_embeddings: (views * N, D), as in the core's loss.

        Raises:
            TypeError: an argument is not a tensor or of the wrong dtype.
            ValueError: labels are missing or not last, or shapes differ.
            RuntimeError: another rank's arguments are wrong.
        """
        terms = self.forward_components(
            *views, labels=labels, reference_embeddings=reference_embeddings
        )
        return terms.loss

    def forward_components(
        self,
        *views: Tensor,
        labels: Tensor | None = None,
        reference_embeddings: Tensor | None = None,
    ) -> VarConTerms:
        """The loss as `forward` returns it, with this rank's per-sample terms.

        Only ``loss`` carries a gradient; kl, nll, confidence and tau2 are
        (views * N,), detached.
        """
        arguments = views if labels is None else (*views, labels)
        self._reject(_call_error(arguments), arguments)
        self._warn_if_local()
        embeddings, labels = arguments[:-1], arguments[-1]
        return super().forward_components(
            torch.cat(embeddings),
            labels.repeat(len(embeddings)),
            reference_embeddings=reference_embeddings,
        )

    def _reject(self, error: Exception | None, arguments: tuple[Tensor, ...]) -> None:
        """Raise ``error`` if there is one; on all ranks, so that none is left waiting.

        The ranks whose arguments are good learn of it from the core's own check.
        """
        if error is None:
            return
        group = active_group(self.process_group) if self.gather_distributed else None
        if group is not None:
            agree(error, next(iter(arguments), torch.empty(0)), group)
        raise error

    def _warn_if_local(self) -> None:
        if self._warned_local or self.gather_distributed or active_group() is None:
            return
        self._warned_local = True
        warn_caller(
            "VarConLoss takes the class means from each rank's own batch: pass "
            "gather_distributed=True to take them over all ranks, as one process with "
            "the whole batch would. Said once."
        )


def _call_error(arguments: tuple[Any, ...]) -> Exception | None:
    """What is wrong with a call, as the exception to raise, with what to write instead.

    Of what holds for any batch, the core's own check decides.
    """
    for position, value in enumerate(arguments):
        if isinstance(value, list | tuple):
            return TypeError(
                f"argument {position} is a {type(value).__name__} of views; write "
                "criterion(*views, labels)"
            )
        if not isinstance(value, Tensor):
            return TypeError(
                f"argument {position} must be a tensor, got {type(value).__name__}; "
                f"write {USAGE}"
            )
    if len(arguments) < 2:
        return ValueError(
            f"VarConLoss needs views and labels, got {len(arguments)} argument(s); "
            f"write {USAGE}"
        )
    *views, labels = arguments
    for position, view in enumerate(views):
        if _could_be_labels(view) and not _could_be_labels(labels):
            return ValueError(
                f"labels must come last, got them as argument {position} of "
                f"{len(arguments)}; write {USAGE}"
            )
    if labels.is_floating_point() and labels.ndim == 2:
        return ValueError(
            f"labels are missing: the last of {len(arguments)} arguments is a view of "
            f"shape {tuple(labels.shape)}; write {USAGE}"
        )
    return _shape_error(views, labels) or _detached_error(views)


def _detached_error(views: list[Tensor]) -> Exception | None:
    """What is wrong with views of which some carry a gradient and others do not."""
    learned = [view.requires_grad for view in views]
    if not torch.is_grad_enabled() or all(learned) or not any(learned):
        return None
    return ValueError(
        f"view {learned.index(False)} carries no gradient and others do: keys of a "
        "momentum encoder (MoCo) would count as samples that nothing learns from; "
        "write criterion(z0, z1, labels, reference_embeddings=torch.cat((k0, k1))), "
        "where keys are for the class references alone"
    )


def _could_be_labels(tensor: Tensor) -> bool:
    return tensor.ndim == 1 or not tensor.is_floating_point()


def _shape_error(views: list[Tensor], labels: Tensor) -> Exception | None:
    """What is wrong with the shapes of the views and of their labels."""
    shapes = [tuple(view.shape) for view in views]
    if len(set(shapes)) > 1:
        return ValueError(
            f"views must have the same shape (N, D), got {shapes}; with a different "
            "number of images in each, write "
            "criterion(torch.cat((z0, z1)), torch.cat((labels0, labels1)))"
        )
    if views[0].ndim != 2 or labels.ndim != 1 or len(labels) == len(views[0]):
        return argument_error(views[0], labels, num_classes=None)
    images, given = len(views[0]), len(labels)
    if len(views) > 1:
        return ValueError(
            f"labels must be one for each image ({images},), got {given} with "
            f"{len(views)} views; they are repeated for each view here: write {USAGE}"
        )
    if given and images % given == 0:
        return ValueError(
            f"labels must be one for each row of the embeddings ({images},), got "
            f"{given}; if the rows are {images // given} views one after the other, "
            f"write criterion(*z.chunk({images // given}), labels)"
        )
    return argument_error(views[0], labels, num_classes=None)
