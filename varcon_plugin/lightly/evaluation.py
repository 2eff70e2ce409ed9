"""What `varcon_plugin.evaluation` needs of lightly: encoders of checkpoints, datasets.

Not imported by the package: it needs the ``eval`` extra.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightly.models.modules import SimCLRProjectionHead
from lightly.transforms.utils import IMAGENET_NORMALIZE
from torch import Tensor, nn
from torch.utils.data import Dataset
from torchvision import transforms as T

from varcon_plugin.checkpoints.reading import named_weights, read_checkpoint
from varcon_plugin.checkpoints.weights import fill
from varcon_plugin.evaluation.features import extract_features
from varcon_plugin.evaluation.images import Encoder
from varcon_plugin.evaluation.sources import (
    ImageTransform,
    NormalizedEncoder,
    normalisation,
)
from varcon_plugin.lightly.backbone import create_backbone, feature_dim
from varcon_plugin.lightly.data import resize_and_crop
from varcon_plugin.lightly.module import EMBEDDING_DIM
from varcon_plugin.training.damaged import ReplaceCorrupt

__all__ = ["dataset_features", "load_encoder"]

SETTINGS = ("backbone", "backbone_kwargs", "stem", "image_size")


def load_encoder(checkpoint: Path, image_size: int | None = None) -> Encoder:
    """The backbone of a `VarCon` that Lightning saved, as the evaluation takes it.

    Args:
        checkpoint: of Lightning; it says itself how the backbone is built.
        image_size: side of the square that the backbone sees; None is that of training.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no checkpoint of `VarCon`, or does not fill the backbone.
    """
    content = read_checkpoint(checkpoint, "cpu")
    weights = named_weights(content, checkpoint)
    settings: dict[str, Any] = content.get("hyper_parameters", {})
    missing = [name for name in SETTINGS if name not in settings]
    if missing:
        raise ValueError(
            f"{checkpoint} is no checkpoint of varcon_plugin.lightly.VarCon: its "
            f"hyper_parameters lack {', '.join(missing)}"
        )
    size = image_size or settings["image_size"]
    name = settings["backbone"]
    named_by_file = settings["backbone_kwargs"] or {}  # must not bring other files
    kwargs = {**named_by_file, "pretrained": False, "checkpoint_path": ""}
    backbone = create_backbone(name, settings["stem"], size, **kwargs)
    fill(backbone, weights, str(checkpoint))
    width = feature_dim(backbone)
    head = SimCLRProjectionHead(width, width, EMBEDDING_DIM)
    own = {n: w for n, w in weights.items() if n.startswith("projection_head.")}
    fill(head, own, str(checkpoint), "projection head")
    return Encoder(
        NormalizedEncoder(backbone, **IMAGENET_NORMALIZE),
        ImageTransform(T.Compose([*resize_and_crop(size), T.PILToTensor()])),
        {
            "source": "lightly",
            "model": name,
            "checkpoint": str(checkpoint),
            "normalisation": normalisation(**IMAGENET_NORMALIZE),
        },
        head,
    )


def dataset_features(
    encoder: nn.Module, dataset: Dataset[Any], **options: Any
) -> Tensor | None:
    """`extract_features` of a dataset that yields (image, ...) as torchvision's do."""
    return extract_features(encoder, _ImagesOnly(dataset), **options)


class _ImagesOnly(Dataset[Tensor]):
    """The first of what ``dataset`` yields; what is damaged there is not replaced."""

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset: Any = dataset
        if isinstance(dataset, ReplaceCorrupt):
            self.dataset = dataset.dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> Tensor:
        image: Tensor = self.dataset[index][0]
        return image
