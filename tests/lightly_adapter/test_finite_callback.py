"""A run of Lightning whose loss turns NaN."""

import pytest
import torch
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from varcon_plugin.health.finite import LossNotFiniteError
from varcon_plugin.lightly import FiniteLossCallback, VarConLoss


class Module(LightningModule):
    def __init__(self, poisoned):
        super().__init__()
        self.encoder = nn.Linear(8, 8)
        self.criterion = VarConLoss()
        self.poisoned = poisoned

    def training_step(self, batch, batch_idx):
        images, labels = batch
        return self.criterion(self.encoder(images), labels=labels)

    def optimizer_step(self, *arguments, **options):
        super().optimizer_step(*arguments, **options)
        if self.trainer.global_step == self.poisoned:
            with torch.no_grad():
                self.encoder.bias.fill_(float("nan"))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize(("poisoned", "good"), [(5, 1), (6, 2)])  # an epoch's end; not
def test_the_run_ends_with_an_error_and_keeps_the_last_good_checkpoint(
    poisoned, good, tmp_path
):
    images = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=5,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[
            ModelCheckpoint(tmp_path, "{epoch}", save_last="link"),
            FiniteLossCallback(),
        ],
    )
    data = DataLoader(TensorDataset(images, torch.arange(16) % 4), batch_size=8)
    with pytest.raises(LossNotFiniteError, match=r"last\.ckpt"):
        trainer.fit(Module(poisoned), data)
    assert [path.name for path in tmp_path.glob("epoch*")] == [f"epoch={good}.ckpt"]
    last = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert last["epoch"] == good
    assert all(value.isfinite().all() for value in last["state_dict"].values())
