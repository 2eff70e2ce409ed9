"""A run of mmengine whose weights turn NaN."""

import uuid
from types import SimpleNamespace

import pytest
import torch
from mmengine.config import Config
from mmengine.hooks import Hook
from mmengine.runner import Runner
from paths import REPO

from varcon_plugin import MomentumCentroids
from varcon_plugin.health.finite import LossNotFiniteError
from varcon_plugin.mmpretrain import FiniteLossHook
from varcon_plugin.mmpretrain.launch import prepare


class Poison(Hook):
    """Turns a weight into NaN, as a step that overflows would."""

    def __init__(self, iteration):
        self.iteration = iteration

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == self.iteration:
            with torch.no_grad():
                next(runner.model.parameters()).fill_(float("nan"))


def run(work_dir, poisoned, **saving):
    """Two iterations an epoch; every epoch is saved and one checkpoint is kept."""
    cfg = Config.fromfile(REPO / "configs" / "varcon_r18_digits.py")
    cfg.merge_from_dict(
        {
            "work_dir": str(work_dir),
            "launcher": "none",
            "experiment_name": uuid.uuid4().hex,
            "model.backbone.base_channels": 4,
            "model.backbone.stem_channels": 4,
            "model.neck.in_channels": 32,
            "train_dataloader.batch_size": 8,
            "train_dataloader.dataset.indices": 16,
            "train_cfg.max_epochs": 8,
            "default_hooks.checkpoint": {
                "type": "CheckpointHook", "interval": 1, "max_keep_ckpts": 1, **saving
            },
        }
    )  # fmt: skip
    prepare(cfg, "train")
    runner = Runner.from_cfg(cfg)
    runner.register_hook(Poison(poisoned), priority="HIGHEST")
    runner.train()


@pytest.mark.parametrize(
    ("poisoned", "saving", "kept"),
    [
        (4, {}, "epoch_2.pth"),  # the loss says so
        (5, {}, "epoch_2.pth"),  # at the end of an epoch: only the weights do
        (5, {"by_epoch": False}, "iter_5.pth"),
    ],
)
def test_the_run_ends_with_an_error_and_keeps_the_last_good_checkpoint(
    poisoned, saving, kept, tmp_path
):
    with pytest.raises(LossNotFiniteError, match=kept):
        run(tmp_path, poisoned, **saving)
    assert [path.name for path in tmp_path.glob("*.pth")] == [kept]
    assert (tmp_path / "last_checkpoint").read_text().endswith(kept)
    state = torch.load(tmp_path / kept, weights_only=False)["state_dict"]
    assert all(value.isfinite().all() for value in state.values())


def test_a_bank_follows_the_loss_scaler():
    scaler = torch.amp.GradScaler("cpu")
    bank = MomentumCentroids(4, 2)
    wrapper = SimpleNamespace(loss_scaler=scaler)
    FiniteLossHook().before_train(SimpleNamespace(model=bank, optim_wrapper=wrapper))
    assert bank._scaler is scaler
