"""`SelfSupervisedVarConLoss`: the objective for images without labels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.distributed import ProcessGroup

from varcon_plugin.distributed import active_group, agree, rank_of
from varcon_plugin.functional import VarConTerms
from varcon_plugin.loss import VarConLoss
from varcon_plugin.momentum import MomentumCentroids
from varcon_plugin.pseudo_labels import Assignment, PseudoLabels

__all__ = ["SelfSupervisedTerms", "SelfSupervisedVarConLoss", "image_labels"]

RANK_STRIDE = 2**40  # more images than a rank ever holds


class SelfSupervisedTerms(NamedTuple):
    """The loss and its parts; only ``loss`` carries a gradient.

    Attributes:
        loss: scalar, the weighted sum.
        image: what each embedding's own image said of it, as
            `VarConLoss.forward_components`.
        latent: the same of its latent class; None where that takes no part.
        assignment: the latent classes of the batch; None without pseudo-labels.
    """

    loss: Tensor
    image: VarConTerms
    latent: VarConTerms | None
    assignment: Assignment | None


class SelfSupervisedVarConLoss(nn.Module):
    """VarCon without labels: each image its own class, and a latent class above it.

    The first term is `VarConLoss` with the views of an image as its class and
    ``leave_one_out``: the reference of a view is the mean of the image's other views,
    those of the other classes the means of the other images. With ``pseudo_labels``, a
    second one compares each view with a bank of latent classes, labelled by the
    teacher's embedding of the image's next view. Both are the objective of the paper,
    adaptive temperature included; docs/self_supervised.md says how the labels are the
    latent variable of its bound.

    Across ranks as `VarConLoss`: the DDP-averaged gradient is that of one process on
    the concatenated batch, also for batches of different size.

    Args:
        temperature: tau_1 of the first term, > 0.
        epsilon: of both terms; 0 <= epsilon < both temperatures.
        pseudo_labels: who says the latent class; None is the first term alone.
        latent_weight: factor on the second term, > 0.
        latent_temperature: tau_1 of the second term, > 0.
        latent_after: calls in training mode before the second term counts; its bank and
            its queue are moved from the start.
        momentum: of the bank of latent classes, see `MomentumCentroids`.
        process_group: the ranks that share a batch; None is the default group.

    Raises:
        ValueError: an argument is out of range, or they do not belong together.
    """

    def __init__(
        self,
        temperature: float = 0.1,
        epsilon: float = 0.02,
        *,
        pseudo_labels: PseudoLabels | None = None,
        latent_weight: float = 1.0,
        latent_temperature: float = 0.1,
        latent_after: int = 0,
        momentum: float = 0.95,
        process_group: ProcessGroup | None = None,
    ) -> None:
        super().__init__()
        if not latent_weight > 0:
            raise ValueError(f"latent_weight must be > 0, got {latent_weight}")
        if latent_after < 0:
            raise ValueError(f"latent_after must be >= 0, got {latent_after}")
        self.process_group = process_group
        self.image_loss = VarConLoss(
            temperature, epsilon, leave_one_out=True, process_group=process_group
        )
        self.pseudo_labels: PseudoLabels | None = pseudo_labels
        self.latent_loss: VarConLoss | None = None
        if pseudo_labels is not None:
            bank = MomentumCentroids(
                pseudo_labels.num_classes, pseudo_labels.dim, momentum
            )
            self.latent_loss = VarConLoss(
                latent_temperature,
                epsilon,
                centroids=bank,
                process_group=process_group,
            )
        self.latent_weight = latent_weight
        self.latent_after = latent_after

    def check_batch(self, images: int, views: int) -> None:
        """Raise ValueError if batches of so many images will not do; before training.

        Args:
            images: of a batch, over all ranks.
            views: of each image.
        """
        if views < 2:
            raise ValueError(
                f"views must be at least 2: an image is told by its other views, got "
                f"{views}"
            )
        if images < 2:
            raise ValueError(
                f"a batch must hold at least 2 images to tell apart, got {images}"
            )
        if self.pseudo_labels is not None:
            self.pseudo_labels.check_batch(images * views)

    def forward(
        self, *views: Tensor, teacher: Sequence[Tensor] | None = None
    ) -> Tensor:
        """The loss, a scalar; arguments as for `forward_components`."""
        return self.forward_components(*views, teacher=teacher).loss

    def forward_components(
        self, *views: Tensor, teacher: Sequence[Tensor] | None = None
    ) -> SelfSupervisedTerms:
        """The loss with its parts.

        Args:
            views: (N, D) each, two or more: embeddings of the same images, in order.
            teacher: the same views as embedded by a teacher, say a moving average of
                the model, to assign the latent classes from; no gradient reaches it.
                None: ``views`` themselves.

        Raises:
            TypeError: an argument is not a tensor or of the wrong dtype.
            ValueError: fewer than two views, or shapes differ.
            RuntimeError: another rank's arguments are wrong.
        """
        group = active_group(self.process_group)
        error = views_error(views, teacher)
        if error is not None:
            if group is not None:
                agree(error, torch.empty(0, 0), group)  # meets the others' first call
            raise error
        embeddings = torch.cat(views)
        labels = image_labels(len(views[0]), len(views), group, embeddings.device)
        image = self.image_loss.forward_components(embeddings, labels)
        loss = image.loss
        image = image._replace(loss=loss.detach())
        if self.pseudo_labels is None or self.latent_loss is None:
            return SelfSupervisedTerms(loss, image, None, None)

        told = embeddings if teacher is None else torch.cat(tuple(teacher))
        bank = self.latent_loss.centroids
        assignment = self.pseudo_labels(told, bank, len(views))
        latent = self.latent_loss.forward_components(embeddings, assignment.labels)
        if self.pseudo_labels.calls > self.latent_after:
            loss = loss + self.latent_weight * latent.loss
        latent = latent._replace(loss=latent.loss.detach())
        return SelfSupervisedTerms(loss, image, latent, assignment)


def image_labels(
    images: int, views: int, group: ProcessGroup | None, device: torch.device
) -> Tensor:
    """Labels (views * images,) that name each image of each rank, all views alike."""
    first = rank_of(group) * RANK_STRIDE
    return torch.arange(first, first + images, device=device).repeat(views)


def views_error(
    views: Sequence[Tensor], teacher: Sequence[Tensor] | None
) -> Exception | None:
    """What is wrong with a call, as the exception to raise; None if nothing is."""
    if isinstance(teacher, Tensor):
        return TypeError("teacher must be a sequence of views, got one tensor")
    for name, given in (("views", views), ("teacher", teacher or ())):
        for value in given:
            if not isinstance(value, Tensor):
                return TypeError(
                    f"{name} must be tensors, got {type(value).__name__}; write "
                    "criterion(z0, z1)"
                )
    if len(views) < 2:
        return ValueError(
            f"at least two views are needed, got {len(views)}: write criterion(z0, z1)"
        )
    shapes = [tuple(view.shape) for view in (*views, *(teacher or ()))]
    if len(set(shapes)) > 1 or len(shapes[0]) != 2:
        return ValueError(
            f"views, and teacher where given, must have one shape (N, D), got {shapes}"
        )
    if teacher is not None and len(teacher) != len(views):
        return ValueError(
            f"teacher must embed every view, got {len(teacher)} of {len(views)}"
        )
    return None
