"""A bank spread over the ranks in runs through Lightning: saved and resumed."""

import os
from unittest.mock import patch

import pytest
import torch
from pytorch_lightning import Trainer
from pytorch_lightning.callbacks import ModelCheckpoint
from torch.utils.data import DataLoader, Dataset

from varcon_plugin.lightly import ShardedBankStrategy, VarCon
from varcon_plugin.momentum import SAVED

CLASSES, IMAGES = 7, 24
pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists:UserWarning"),
]


class Pairs(Dataset):
    """Two views of each of a few images."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.views = torch.randn(IMAGES, 2, 3, 32, 32, generator=generator)
        self.targets = torch.randint(CLASSES, (IMAGES,), generator=generator)

    def __len__(self):
        return IMAGES

    def __getitem__(self, index):
        return list(self.views[index]), int(self.targets[index])


def bank_after(rank, ranks, folder, epochs, ckpt_path):
    """This rank's part of the bank, after training to ``epochs``."""
    environment = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "GROUP_RANK": 0,
        "WORLD_SIZE": ranks,
        "LOCAL_WORLD_SIZE": ranks,
        "TORCHELASTIC_RUN_ID": "test",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": 1,  # unused: the process group exists
    }
    with patch.dict(os.environ, {k: str(v) for k, v in environment.items()}):
        torch.manual_seed(0)
        model = VarCon(
            4,
            CLASSES,
            5,
            0.1,
            backbone="test_resnet",
            centroid_momentum=0.9,
            shard_centroids=True,
        )
        trainer = Trainer(
            max_epochs=epochs,
            accelerator="cpu",
            devices=ranks,
            strategy=ShardedBankStrategy(),
            callbacks=[ModelCheckpoint(folder, "{epoch}")],
            logger=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(model, DataLoader(Pairs(), 4), ckpt_path=ckpt_path)
    bank = model.criterion.centroids
    assert trainer.current_epoch == epochs
    return {name: getattr(bank, name)[: bank.shard.used].clone() for name in SAVED[:3]}


def joined(parts):
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def test_saved_on_two_ranks_and_resumed_on_three_and_on_one(run_ranks, tmp_path):
    run = tmp_path / "run"  # beside the files by which the ranks meet
    folder = str(run)
    saved = joined(run_ranks(bank_after, 2, 2, folder, 2, None))
    assert saved["counts"].sum() == 2 * 2 * IMAGES  # epochs, views
    file = run / "epoch=1.ckpt"
    names = sorted(path.name for path in run.iterdir())
    assert names == ["epoch=1.ckpt", "epoch=1.ckpt.bank"]  # the first is gone, whole
    state = torch.load(file, weights_only=False)["state_dict"]
    assert not any(key.endswith("centroids.means") for key in state)
    for ranks in (3, 1):
        resumed = joined(run_ranks(bank_after, ranks, ranks, folder, 2, str(file)))
        for name, value in saved.items():
            assert torch.equal(resumed[name], value), (ranks, name)
    further = joined(run_ranks(bank_after, 1, 1, folder, 3, str(file)))
    assert further["counts"].sum() == 3 * 2 * IMAGES


def test_it_needs_a_bank():
    with pytest.raises(ValueError, match="needs a centroid_momentum, got None"):
        VarCon(4, CLASSES, backbone="test_resnet", shard_centroids=True)
