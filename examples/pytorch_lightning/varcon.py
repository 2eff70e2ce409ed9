"""VarCon with lightly and PyTorch Lightning, on scikit-learn's handwritten digits.

    pip install "varcon-plugin[lightly]"
    python examples/pytorch_lightning/varcon.py

About a minute on two CPU cores. Batch size, learning rate and length are chosen for
that, not for accuracy.
"""

from typing import Any

import pytorch_lightning as pl
import torch
from lightly.models.modules import SimCLRProjectionHead
from torch import Tensor, nn
from torch.utils.data import DataLoader
from torchvision.models import resnet18

from varcon_plugin.lightly import VarConLoss
from varcon_plugin.lightly.data import Digits, digits_transform


class VarCon(pl.LightningModule):
    """A ResNet-18 and SimCLR's projection head under the VarCon loss."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = resnet18()
        self.backbone.fc = nn.Identity()
        self.projection_head = SimCLRProjectionHead(512, 512, 128)
        # Class means over the batches of all GPUs.
        self.criterion = VarConLoss(gather_distributed=True)

    def forward(self, x: Tensor) -> Tensor:
        """Embeddings of images."""
        return self.projection_head(self.backbone(x))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        """The loss of a batch: ((x0, x1), labels) or ((x0, x1), labels, filenames)."""
        z0, z1 = (self(view) for view in batch[0])
        loss = self.criterion(z0, z1, batch[1])
        self.log("train_loss", loss, prog_bar=True, sync_dist=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Plain SGD."""
        return torch.optim.SGD(self.parameters(), lr=0.06)


if __name__ == "__main__":
    # For your own images: LightlyDataset("a/folder", transform=SimCLRTransform()).
    dataset = Digits("train", transform=digits_transform(image_size=32))
    dataloader = DataLoader(dataset, batch_size=128, shuffle=True, drop_last=True)
    # On several GPUs (devices="auto" takes all) Lightning runs DDP.
    trainer = pl.Trainer(
        max_epochs=8,
        devices=1,
        sync_batchnorm=torch.cuda.is_available(),
        log_every_n_steps=5,
    )
    trainer.fit(VarCon(), dataloader)
