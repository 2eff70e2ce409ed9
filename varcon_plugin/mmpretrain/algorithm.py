"""The algorithm: views through backbone and neck, their labels to the head."""

from __future__ import annotations

from typing import Any

import torch
from mmpretrain.models.selfsup.base import BaseSelfSupervisor
from mmpretrain.registry import MODELS
from mmpretrain.structures import DataSample
from torch import Tensor, nn

from varcon_plugin.mmpretrain.head import VarConHead
from varcon_plugin.training.ema import EmaEncoder
from varcon_plugin.training.micro_batches import check_size, in_micro_batches
from varcon_plugin.training.views import repeat_rows

__all__ = ["VarCon"]


@MODELS.register_module()
class VarCon(BaseSelfSupervisor):
    """VarCon (https://arxiv.org/abs/2506.07413), beside mmpretrain's SimCLR.

    Takes backbone, neck, head and the other arguments of mmpretrain's self-supervised
    algorithms; `extract_feat` returns what the backbone returns, as theirs do. Any
    number of views from ``MultiView``. They are concatenated in order, all images of
    view 0 before all of view 1, and the labels are repeated accordingly. Views of
    several sizes (multi-crop) pass the backbone size by size.

    Args:
        channels_last: keep images and the backbone's convolutions in that memory
            layout, which cuDNN's and oneDNN's convolutions are fastest in.
        ema_decay: class references come from the embeddings of a moving average of
            backbone and neck with this decay (`EmaEncoder`), which sees the views of
            the first size; of an image, they stand for its smaller views too. None:
            from those of the encoder itself. Needs `VarConHead`.
        micro_batch_size: views that backbone and neck see at a time, >= 1: a batch that
            does not fit the device, with the gradient of the whole batch
            (`varcon_plugin.training.micro_batches.MicroBatches`). None is all.
    """

    def __init__(
        self,
        *args: Any,
        channels_last: bool = True,
        micro_batch_size: int | None = None,
        ema_decay: float | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.ema: EmaEncoder | None = None
        if ema_decay is not None:
            if not isinstance(self.head, VarConHead):
                raise ValueError(
                    "ema_decay makes class references, for head.type='VarConHead'; got "
                    f"{type(self.head).__name__}"
                )
            self.ema = EmaEncoder(self.encoder, ema_decay)
        check_size(micro_batch_size)
        self.micro_batch_size = micro_batch_size
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        self.backbone.to(memory_format=self.layout)

    def init_weights(self) -> None:
        """Draw the weights; a seed gives the same ones in either memory layout."""
        self.backbone.to(memory_format=torch.contiguous_format)
        super().init_weights()
        self.backbone.to(memory_format=self.layout)

    def loss(
        self,
        inputs: list[Tensor] | Tensor,
        data_samples: list[DataSample] | None = None,
        **kwargs: Any,
    ) -> dict[str, Tensor]:
        """The head's loss and log values for a batch.

        Args:
            inputs: the views, each (B, C, H, W) (as ``MultiView`` and
                ``default_collate`` yield them), or the only view.
            data_samples: B samples with one ``gt_label`` each.
            **kwargs: ignored, as in mmpretrain's algorithms.

        Raises:
            ValueError: labels are missing, or a sample has several.
        """
        views = [inputs] if isinstance(inputs, Tensor) else list(inputs)
        labels = to_device(batch_labels(data_samples), views[0].device)
        labels = labels.repeat(len(views))
        embeddings = self.embed(views)
        references = {}
        if self.ema is not None:
            references["reference_embeddings"] = self._references(views)
        losses: dict[str, Tensor] = self.head.loss(embeddings, labels, **references)
        return losses

    @torch.no_grad()
    def _references(self, views: list[Tensor]) -> Tensor:
        """Embeddings of the average encoder for the rows of all views."""
        assert self.ema is not None
        ema = self.ema
        if self.training:
            ema.follow(self.encoder)
        large = [
            view.contiguous(memory_format=self.layout)
            for view in views
            if view.shape == views[0].shape
        ]
        embeddings: Tensor = in_micro_batches(
            lambda images: ema(images)[-1], large, self.micro_batch_size, [ema]
        )
        return repeat_rows(embeddings, len(views) * len(views[0]))

    @property
    def encoder(self) -> nn.Sequential:
        """Backbone and neck; what comes last of its output are the embeddings."""
        parts = [self.backbone, self.neck] if self.with_neck else [self.backbone]
        return nn.Sequential(*parts)

    def embed(self, views: list[Tensor]) -> Tensor:
        """Embeddings (V * B, D) of views (B, C, H, W), all of view 0 first."""
        encoder = self.encoder
        embeddings: Tensor = in_micro_batches(
            lambda images: encoder(images)[-1],
            [view.contiguous(memory_format=self.layout) for view in views],
            self.micro_batch_size,
            [*encoder],
        )
        return embeddings


def to_device(labels: Tensor, device: torch.device) -> Tensor:
    """One copy, for which the host does not wait."""
    if device.type == "cuda" and labels.device.type == "cpu":
        labels = labels.pin_memory()
    return labels.to(device, non_blocking=True)


def batch_labels(data_samples: list[DataSample] | None) -> Tensor:
    """The class ids (B,) of ``data_samples``.

    Raises:
        ValueError: there are no samples, one has no label, or one has several.
    """
    if not data_samples:
        raise ValueError(
            "VarCon needs the labels of the images, got no data_samples: end the "
            "pipeline with PackInputs"
        )
    for index, sample in enumerate(data_samples):
        if "gt_label" not in sample:
            raise ValueError(
                "VarCon needs the labels of the images, but sample "
                f"{index} ({sample.get('img_path', 'no img_path')}) has no gt_label: "
                "either the dataset has none (with_label=False, a test split, a flat "
                "folder) or a pipeline step before PackInputs dropped it"
            )
        if len(sample.gt_label) != 1:
            raise ValueError(
                f"VarCon needs one label for each image, but sample {index} has "
                f"{len(sample.gt_label)}: multi-label datasets are not supported"
            )
    return torch.cat([sample.gt_label for sample in data_samples])
