"""Two gloo processes follow one process with the same global batch."""

import os
from unittest.mock import patch

import pytest
import torch
from lightly.models.modules import SimCLRProjectionHead
from pytorch_lightning import Callback, Trainer
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from varcon_plugin.lightly import VarCon

CLASSES, IMAGES, BATCH, EPOCHS = 3, 24, 8, 2  # six steps


class Pairs(Dataset):
    """Two fixed views of each image; the classes are not spread evenly over ranks."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.views = torch.randn(IMAGES, 2, 3, 32, 32, generator=generator).double()
        self.targets = torch.randint(CLASSES, (IMAGES,), generator=generator)

    def __len__(self):
        return IMAGES

    def __getitem__(self, index):
        return list(self.views[index]), int(self.targets[index])


class Record(Callback):
    """All weights after each step."""

    def __init__(self):
        self.weights = []

    def on_train_batch_end(self, trainer, module, *_):
        state = module.state_dict().items()
        self.weights.append({name: value.clone() for name, value in state})


def weights_of_each_step(rank, ranks, **settings):
    """Train with ``BATCH`` images over all ranks; no layer normalises over a batch."""
    torch.manual_seed(0)
    model = VarCon(
        BATCH // ranks, CLASSES, 5, 0.1, backbone="test_convnext", **settings
    )
    model.projection_head = SimCLRProjectionHead(64, 64, 128, batch_norm=False)
    assert not any(isinstance(m, torch.nn.BatchNorm1d) for m in model.modules())
    record = Record()
    trainer = Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        devices=ranks,
        precision="64-true",
        use_distributed_sampler=False,
        callbacks=[record],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    # Lightning's own sampler would shuffle
    sampler = DistributedSampler(Pairs(), ranks, rank, shuffle=False)
    trainer.fit(model, DataLoader(Pairs(), BATCH // ranks, sampler=sampler))
    return record.weights, float(trainer.callback_metrics["train_loss"])


def _train_on_rank(rank, settings):
    environment = {
        "RANK": rank,
        "LOCAL_RANK": rank,
        "GROUP_RANK": 0,
        "WORLD_SIZE": 2,
        "LOCAL_WORLD_SIZE": 2,
        "TORCHELASTIC_RUN_ID": "test",
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": 1,  # unused: the process group exists
    }
    with patch.dict(os.environ, {k: str(v) for k, v in environment.items()}):
        return weights_of_each_step(rank, 2, **settings)


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"leave_one_out": True},
        {"centroid_momentum": 0.9},
        {"centroid_momentum": 0.9, "micro_batch_size": 3},
    ],
)
def test_two_processes_follow_one_step_for_step(run_ranks, settings):
    in_one_pass = {**settings, "micro_batch_size": None}
    expected, loss = weights_of_each_step(0, 1, **in_one_pass)
    assert len(expected) == EPOCHS * IMAGES // BATCH
    for weights, rank_loss in run_ranks(_train_on_rank, 2, settings):
        assert rank_loss == pytest.approx(loss, rel=1e-10)
        assert len(weights) == len(expected)
        for step, (ours, single) in enumerate(zip(weights, expected, strict=True)):
            for name, value in single.items():
                torch.testing.assert_close(
                    ours[name], value, rtol=1e-9, atol=1e-12, msg=f"{name}, {step}"
                )
    for name, value in expected[0].items():
        if name.startswith("backbone"):
            assert not torch.equal(value, expected[-1][name]), name
