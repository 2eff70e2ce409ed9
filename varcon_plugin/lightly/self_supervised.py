"""`VarConSSL` as a LightningModule: images without labels."""

from __future__ import annotations

import copy
from typing import Any

import torch
from lightly.models.utils import deactivate_requires_grad, update_momentum
from pytorch_lightning.utilities import rank_zero_warn
from torch import Tensor, nn

from varcon_plugin.health.latent_classes import LatentClassMonitor
from varcon_plugin.lightly.module import EMBEDDING_DIM, Batch, VarCon
from varcon_plugin.pseudo_labels import PseudoLabels
from varcon_plugin.self_supervised import SelfSupervisedVarConLoss
from varcon_plugin.training.micro_batches import in_micro_batches

__all__ = ["VarConSSL"]

REFERENCES = (
    "leave_one_out",
    "centroid_momentum",
    "num_negatives",
    "shard_centroids",
    "ema_decay",
)


class VarConSSL(VarCon):
    """`VarCon` without labels: each image its own class, and a latent class above it.

    The labels of a batch train the online classifier alone, which is evaluation: no
    gradient of it reaches the model. After each epoch the measures of the latent
    classes are logged as ``train_latent_*``, and a failure sign is a warning, once.

    Args:
        batch_size_per_device: as for `VarCon`.
        num_classes: of the labels, for evaluation.
        knn_k: as for `VarCon`.
        knn_t: as for `VarCon`.
        temperature: of each image as a class.
        epsilon: of the loss.
        latent_classes: how many; None is each image its own class alone.
        latent_weight: factor on the term of the latent classes.
        latent_after: steps before it counts.
        queue_size: of the pseudo-labels, for batches too small to fill every class.
        teacher_momentum: of a moving average of the model, which then says the latent
            classes, in [0, 1); None: the model itself does.
        options: further arguments of `VarCon`; not those of its class references.

    Raises:
        ValueError: an argument is out of range, or the batches cannot fill the classes
            (before training starts).
    """

    criterion: SelfSupervisedVarConLoss  # type: ignore[assignment]

    def __init__(
        self,
        batch_size_per_device: int,
        num_classes: int,
        knn_k: int = 200,
        knn_t: float = 0.1,
        *,
        temperature: float = 0.1,
        epsilon: float = 0.02,
        latent_classes: int | None = None,
        latent_weight: float = 0.25,
        latent_after: int = 0,
        queue_size: int = 0,
        teacher_momentum: float | None = None,
        **options: Any,
    ) -> None:
        for name in REFERENCES:
            if options.get(name):
                raise ValueError(
                    f"{name} is for class references of labelled images, not for "
                    "VarConSSL: leave it out"
                )
        super().__init__(batch_size_per_device, num_classes, knn_k, knn_t, **options)
        self.save_hyperparameters()
        labels = None
        if latent_classes is not None:
            labels = PseudoLabels(latent_classes, EMBEDDING_DIM, queue_size=queue_size)
        self.criterion = SelfSupervisedVarConLoss(
            temperature,
            epsilon,
            pseudo_labels=labels,
            latent_weight=latent_weight,
            latent_after=latent_after,
        )
        self.monitor = LatentClassMonitor(self.criterion) if labels else None
        self.teacher: nn.ModuleList | None = None
        self.teacher_momentum = teacher_momentum
        if teacher_momentum is None:
            return
        if not 0 <= teacher_momentum < 1:
            raise ValueError(
                f"teacher_momentum must be in [0, 1), got {teacher_momentum}"
            )
        if labels is None:
            raise ValueError(
                "teacher_momentum makes a teacher for the latent classes: give "
                "latent_classes, or leave it out"
            )
        self.teacher = copy.deepcopy(self._encoder())
        deactivate_requires_grad(self.teacher)

    def _encoder(self) -> nn.ModuleList:
        return nn.ModuleList([self.backbone, self.projection_head])

    def on_fit_start(self) -> None:
        """Check that batches of all ranks can fill the classes."""
        images = self.batch_size_per_device * self.trainer.world_size
        self.criterion.check_batch(images, views=2)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of the views, plus that of the online classifier beside them."""
        views, targets = list(batch[0]), batch[1]
        told = self._teach(views)
        features, z = in_micro_batches(
            self._encode,
            views,
            self.micro_batch_size,
            [self.backbone, self.projection_head],
        )
        terms = self.criterion.forward_components(*z.chunk(len(views)), teacher=told)
        if self.monitor is not None:
            self.monitor.add(terms)
        class_loss, class_log = self.online_classifier.training_step(
            (features.detach(), targets.repeat(len(views))), batch_idx
        )
        shared: dict[str, Any] = {"sync_dist": True, "batch_size": len(targets)}
        self.log("train_loss", terms.loss, prog_bar=True, **shared)
        for name in ("kl", "nll", "tau2", "confidence"):
            self.log(f"train_{name}", getattr(terms.image, name).mean(), **shared)
        self.log_dict(class_log, **shared)
        loss: Tensor = terms.loss + class_loss
        return loss

    @torch.no_grad()
    def _teach(self, views: list[Tensor]) -> list[Tensor] | None:
        if self.teacher is None or self.teacher_momentum is None:
            return None
        update_momentum(self._encoder(), self.teacher, self.teacher_momentum)
        backbone, head = self.teacher[0], self.teacher[1]
        return [head(backbone(view).flatten(start_dim=1)) for view in views]

    def on_train_epoch_end(self) -> None:
        """Log the measures of the latent classes; warn of a failure sign."""
        if self.monitor is None:
            return
        values = self.monitor.report()
        self.log_dict({f"train_{name}": value for name, value in values.items()})
        steps = self.trainer.estimated_stepping_batches
        warning = self.monitor.news(values, self.global_step / steps)
        if warning is not None:
            rank_zero_warn(f"{warning.name}: {warning.message}")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep which failure signs were told."""
        if self.monitor is not None:
            checkpoint["varcon_latent_classes"] = self.monitor.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Go on from there, on the schedule of this run."""
        super().on_load_checkpoint(checkpoint)
        if self.monitor is not None and "varcon_latent_classes" in checkpoint:
            self.monitor.load_state_dict(checkpoint["varcon_latent_classes"])
