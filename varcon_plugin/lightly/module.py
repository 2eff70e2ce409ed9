"""`VarCon` as a LightningModule, for lightly's ImageNet ResNet-50 benchmark."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, Literal

import torch
from lightly.models.modules import SimCLRProjectionHead
from lightly.models.utils import get_weight_decay_parameters
from lightly.transforms import SimCLRTransform
from lightly.utils.benchmarking import KNNClassifier, OnlineLinearClassifier
from lightly.utils.scheduler import CosineWarmupScheduler
from pytorch_lightning import LightningModule
from pytorch_lightning.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn

from varcon_plugin.lightly.backbone import create_backbone, feature_dim
from varcon_plugin.lightly.loss import VarConLoss
from varcon_plugin.lightly.package import say_which_lightning
from varcon_plugin.momentum import MomentumCentroids, follow_scaler
from varcon_plugin.training.ema import EmaEncoder
from varcon_plugin.training.lars import ForeachLARS
from varcon_plugin.training.micro_batches import check_size, in_micro_batches
from varcon_plugin.training.views import repeat_rows

__all__ = ["VarCon", "transform"]

# SimCLR's, as in lightly's benchmark: the comparison then changes the loss alone.
transform = SimCLRTransform()

EMBEDDING_DIM = 128
Batch = Sequence[Any]  # (views, targets) or (views, targets, filenames)


class VarCon(LightningModule):
    """Backbone, SimCLR's projection head and the VarCon loss over all ranks.

    Takes the constructor arguments, batches and two validation loaders (the k-NN bank,
    then the images to classify) of the SimCLR in lightly's ImageNet ResNet-50
    benchmark, and trains with LARS on the same schedule, which here scales the rate
    inside the momentum, as mmpretrain's does (`varcon_plugin.training.lars`). What is
    evaluated is the output of the backbone; the projection head is for training alone.

    Args:
        batch_size_per_device: images, before views; the learning rate grows with the
            square root of the global batch.
        num_classes: labels are in [0, num_classes).
        knn_k: neighbours of the k-NN classifier; all of the bank if it holds fewer.
        knn_t: temperature of the k-NN classifier.
        backbone: a timm model name.
        backbone_kwargs: further arguments of `timm.create_model`, such as
            ``{"drop_path_rate": 0.1}``.
        stem: ``"cifar"`` gives a ResNet a 3x3 stem without stride or pooling, for
            images of 64 pixels and less.
        image_size: side of the images in pixels, for backbones built for one size; and
            what evaluation resizes to.
        temperature: of the loss.
        epsilon: of the loss.
        leave_one_out: of the loss.
        centroid_momentum: keep class references beyond the batch, in
            `varcon_plugin.momentum.MomentumCentroids` of this momentum; None takes the
            class means of each batch, as published.
        num_negatives: score so many classes, drawn from the bank of
            ``centroid_momentum``, beside those of the batch; None is all.
        accumulation_steps: move the bank of ``centroid_momentum`` once in so many
            batches; the ``accumulate_grad_batches`` of the Trainer.
        shard_centroids: spread the bank of ``centroid_momentum`` over the ranks; for
            checkpoints train with `varcon_plugin.lightly.ShardedBankStrategy`.
        ema_decay: class references come from the embeddings of a moving average of
            backbone and projection head with this decay (`EmaEncoder`), which sees the
            views of the first size; of an image, they stand for its smaller views too.
            None: from those of the encoder itself.
        micro_batch_size: views that backbone and projection head see at a time, >= 1: a
            batch that does not fit the device, with the gradient of the whole batch
            (`varcon_plugin.training.micro_batches.MicroBatches`). None is all.
        lr: for a global batch of one image; SimCLR's 0.075.
        weight_decay: not on norm layers, biases and the online classifier.
        warmup_epochs: of the learning rate, at most half of the run.
    """

    def __init__(
        self,
        batch_size_per_device: int,
        num_classes: int,
        knn_k: int = 200,
        knn_t: float = 0.1,
        *,
        backbone: str = "resnet50",
        backbone_kwargs: dict[str, Any] | None = None,
        stem: Literal["imagenet", "cifar"] = "imagenet",
        image_size: int = 224,
        temperature: float = 0.1,
        epsilon: float = 0.02,
        leave_one_out: bool = False,
        centroid_momentum: float | None = None,
        num_negatives: int | None = None,
        accumulation_steps: int = 1,
        shard_centroids: bool = False,
        ema_decay: float | None = None,
        micro_batch_size: int | None = None,
        lr: float = 0.075,
        weight_decay: float = 1e-6,
        warmup_epochs: float = 10,
    ) -> None:
        super().__init__()
        say_which_lightning(self)
        check_size(micro_batch_size)
        self.save_hyperparameters()
        self.micro_batch_size = micro_batch_size
        self.batch_size_per_device = batch_size_per_device
        self.lr = lr
        self.weight_decay = weight_decay
        self.warmup_epochs = warmup_epochs
        self.knn_k = knn_k

        self.backbone = create_backbone(
            backbone, stem, image_size, **(backbone_kwargs or {})
        )
        features = feature_dim(self.backbone)
        self.projection_head = SimCLRProjectionHead(features, features, EMBEDDING_DIM)
        self.ema: EmaEncoder | None = None
        if ema_decay is not None:
            self.ema = EmaEncoder(self._encoder(), ema_decay)
        bank = {
            "num_negatives": num_negatives,
            "accumulation_steps": accumulation_steps,
            "sharded": shard_centroids,
        }
        check_bank_options(centroid_momentum, bank)
        self._create_criterion = partial(
            create_criterion,
            num_classes,
            temperature,
            epsilon,
            leave_one_out,
            centroid_momentum,
            bank,
        )
        self.criterion: VarConLoss | None = None
        if not shard_centroids:
            self.criterion = self._create_criterion()

        topk = (1, 5) if num_classes >= 5 else (1,)
        self.online_classifier = OnlineLinearClassifier(features, num_classes, topk)
        self.knn_classifier = _QuietKNNClassifier(
            model=None,
            num_classes=num_classes,
            knn_k=knn_k,
            knn_t=knn_t,
            train_dataloader_idx=0,
            val_dataloader_idx=1,
            topk=topk,
        )
        self._bank_size = 0

    def configure_model(self) -> None:
        """Make a bank spread over the ranks, now that they are there."""
        if self.criterion is None:
            self.criterion = self._create_criterion()

    def on_train_start(self) -> None:
        """Let class references stay where a gradient scaler skips a step."""
        scaler = getattr(self.trainer.precision_plugin, "scaler", None)
        if scaler is not None:
            follow_scaler(self, scaler)

    def on_fit_start(self) -> None:
        """Check that a bank moves once in each step of the optimizer."""
        bank = getattr(self.criterion, "centroids", None)
        given = getattr(bank, "accumulation_steps", None)
        needed = self.trainer.accumulate_grad_batches
        if given not in (None, needed):
            raise ValueError(
                f"accumulation_steps of VarCon must be {needed}, the "
                f"accumulate_grad_batches of the Trainer, got {given}"
            )

    def forward(self, x: Tensor) -> Tensor:
        """Features (N, F) of images (N, 3, H, W), before the projection head."""
        features: Tensor = self.backbone(x).flatten(start_dim=1)
        return features

    def _encode(self, images: Tensor) -> tuple[Tensor, ...]:
        """Features and embeddings of images."""
        features = self(images)
        return features, self.projection_head(features)

    def _encoder(self) -> nn.Module:
        """Images to embeddings, in a module that is not part of this one."""
        return nn.Sequential(self.backbone, nn.Flatten(), self.projection_head)

    @torch.no_grad()
    def _references(self, views: Sequence[Tensor], rows: int) -> Tensor:
        """Embeddings of the average encoder for the rows of all views."""
        assert self.ema is not None
        self.ema.follow(self._encoder())
        large = [view for view in views if view.shape == views[0].shape]
        embeddings = in_micro_batches(
            self.ema, large, self.micro_batch_size, [self.ema]
        )
        return repeat_rows(embeddings, rows)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """The loss of the views, plus that of the online classifier beside them."""
        views, targets = batch[0], batch[1]
        labels = targets.repeat(len(views))
        features, z = in_micro_batches(
            self._encode,
            views,
            self.micro_batch_size,
            [self.backbone, self.projection_head],
        )
        assert self.criterion is not None
        references = None if self.ema is None else self._references(views, len(z))
        terms = self.criterion.forward_components(
            z, labels, reference_embeddings=references
        )
        class_loss, class_log = self.online_classifier.training_step(
            (features.detach(), labels), batch_idx
        )
        shared: dict[str, Any] = {"sync_dist": True, "batch_size": len(targets)}
        self.log("train_loss", terms.loss, prog_bar=True, **shared)
        for name in ("kl", "nll", "tau2", "confidence"):
            self.log(f"train_{name}", getattr(terms, name).mean(), **shared)
        self.log_dict(class_log, **shared)
        loss: Tensor = terms.loss + class_loss
        return loss

    def validation_step(
        self, batch: Batch, batch_idx: int, dataloader_idx: int | None = None
    ) -> Tensor | None:
        """Fill the k-NN bank from loader 0, then classify loader 1.

        A single loader is classified by the online classifier alone.
        """
        images, targets = batch[0], batch[1]
        features = self(images)
        log: dict[str, Tensor] = {}
        if dataloader_idx is not None:
            if dataloader_idx == 0:
                self._bank_size += len(targets) * self.trainer.world_size
            self.knn_classifier.knn_k = min(self.knn_k, self._bank_size)
            knn_log = self.knn_classifier.validation_step(
                (features, targets), batch_idx, dataloader_idx
            )
            if knn_log is None:
                return None
            log.update(knn_log)
        class_loss: Tensor
        class_loss, class_log = self.online_classifier.validation_step(
            (features, targets), batch_idx
        )
        self.log_dict(
            {**log, **class_log},
            prog_bar=True,
            sync_dist=True,
            batch_size=len(targets),
            add_dataloader_idx=False,
        )
        return class_loss

    def on_validation_epoch_end(self) -> None:
        """Let go of the k-NN bank."""
        self.knn_classifier.reset_storage()
        self._bank_size = 0

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Resume on the schedule of this run, not of the one that was interrupted."""
        for state in checkpoint.get("lr_schedulers", []):
            for length in ("warmup_epochs", "max_epochs"):
                state.pop(length, None)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """LARS with warm-up and cosine decay, stepped every batch."""
        decayed, undecayed = get_weight_decay_parameters(
            [self.backbone, self.projection_head]
        )
        classifier = list(self.online_classifier.parameters())
        images = self.batch_size_per_device * self.trainer.world_size
        optimizer = ForeachLARS(
            [
                {"name": "varcon", "params": decayed},
                {
                    "name": "varcon_no_weight_decay",
                    "params": undecayed,
                    "weight_decay": 0.0,
                    "lars_exclude": True,
                },
                {
                    "name": "online_classifier",
                    "params": classifier,
                    "weight_decay": 0.0,
                    "lars_exclude": True,
                },
            ],
            lr=self.lr * math.sqrt(images),
            momentum=0.9,
            weight_decay=self.weight_decay,
        )
        steps, warmup = self._schedule()
        scheduler = CosineWarmupScheduler(optimizer, warmup, steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def _schedule(self) -> tuple[int, int]:
        """Optimizer steps of the run, and of its warm-up."""
        steps = self.trainer.estimated_stepping_batches
        if math.isinf(steps):
            raise ValueError(
                "the cosine schedule needs an end: give the Trainer max_epochs or "
                "max_steps"
            )
        batches = (
            self.trainer.num_training_batches / self.trainer.accumulate_grad_batches
        )
        epoch = math.ceil(batches) if math.isfinite(batches) else steps
        return int(steps), int(min(self.warmup_epochs * epoch, steps / 2))


def check_bank_options(centroid_momentum: float | None, bank: dict[str, Any]) -> None:
    """Raise ValueError if a bank that is not asked for has options."""
    none = {"num_negatives": None, "accumulation_steps": 1, "sharded": False}
    given = [name for name, value in bank.items() if value != none[name]]
    if given and centroid_momentum is None:
        names = {"sharded": "shard_centroids"}
        listed = " and ".join(names.get(name, name) for name in given)
        raise ValueError(f"{listed} needs a centroid_momentum, got None")


def create_criterion(
    num_classes: int,
    temperature: float,
    epsilon: float,
    leave_one_out: bool,
    centroid_momentum: float | None,
    bank: dict[str, Any],
) -> VarConLoss:
    """The loss over all ranks, with the references that `VarCon`'s arguments name.

    ``bank`` are further arguments of `MomentumCentroids`.
    """
    source: dict[str, Any] = {"leave_one_out": leave_one_out}
    if centroid_momentum is None:
        source["num_classes"] = num_classes
    else:
        source["centroids"] = MomentumCentroids(
            num_classes, EMBEDDING_DIM, centroid_momentum, **bank
        )
    return VarConLoss(temperature, epsilon, gather_distributed=True, **source)


class _QuietKNNClassifier(KNNClassifier):
    """Leaves logging to the module around it.

    Inside another module lightly 1.6's own call of `log_dict` raises: Lightning lets
    only the outermost module log.
    """

    def log_dict(self, *args: Any, **kwargs: Any) -> None:
        """Do nothing; `VarCon.validation_step` logs what comes back."""
