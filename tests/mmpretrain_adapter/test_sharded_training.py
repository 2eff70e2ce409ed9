"""A bank spread over the ranks in runs through mmengine: saved and resumed."""

import uuid

import pytest
import torch
from mmengine.config import Config
from mmengine.dist import get_rank
from mmpretrain.registry import RUNNERS
from paths import REPO

from varcon_plugin.mmpretrain.launch import prepare
from varcon_plugin.mmpretrain.unwrap import unwrapped
from varcon_plugin.momentum import SAVED

CLASSES = 10


def bank_after(rank, folder, epochs, resume, sharded=True):
    """This rank's part of the bank, after training to ``epochs``."""
    cfg = Config.fromfile(REPO / "configs" / "varcon_r18_digits.py")
    cfg.model.head.loss = {
        "type": "VarConLoss",
        "centroids": {
            "type": "MomentumCentroids",
            "num_classes": CLASSES,
            "dim": 64,
            "sharded": sharded,
        },
    }
    cfg.train_dataloader.batch_size = 8
    cfg.train_dataloader.dataset = {
        **cfg.train_dataloader.dataset,
        "indices": list(range(48)),
    }
    cfg.default_hooks.checkpoint.update(interval=1, max_keep_ckpts=1)
    cfg.runner_type = "ShardedRunner"
    cfg.model_wrapper_cfg = {"type": "CPUDistributedDataParallel"}
    cfg.work_dir, cfg.launcher = folder, "none"
    cfg.experiment_name = f"{uuid.uuid4().hex}_{get_rank()}"
    cfg.merge_from_dict({"train_cfg.max_epochs": epochs, "resume": resume})
    prepare(cfg, "train")
    runner = RUNNERS.build(cfg)
    runner.train()
    bank = unwrapped(runner).head.loss_module.centroids
    used = CLASSES if bank.shard is None else bank.shard.used
    return {name: getattr(bank, name)[:used].clone() for name in SAVED[:3]}


def joined(parts):
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


def test_saved_on_two_ranks_and_resumed_on_three_and_on_one(
    run_ranks, tmp_path, monkeypatch
):
    monkeypatch.setenv("LOCAL_RANK", "0")
    folder = str(tmp_path)
    saved = joined(run_ranks(bank_after, 2, folder, 2, False))
    assert saved["counts"].sum() == 2 * 2 * 48  # epochs, views, images
    names = sorted(path.name for path in tmp_path.glob("*.pth*"))
    assert names == ["epoch_2.pth", "epoch_2.pth.bank"]  # the first is gone, whole
    held = torch.load(tmp_path / "epoch_2.pth", weights_only=False)["state_dict"]
    assert not any(key.endswith("centroids.means") for key in held)
    for ranks in (3, 1):
        resumed = joined(run_ranks(bank_after, ranks, folder, 2, True))
        for name, value in saved.items():
            assert torch.equal(resumed[name], value), (ranks, name)
    further = joined(run_ranks(bank_after, 1, folder, 3, True))
    assert further["counts"].sum() == 3 * 2 * 48


def test_a_checkpoint_with_a_whole_bank_is_spread(run_ranks, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    (whole,) = run_ranks(bank_after, 1, str(tmp_path), 1, False, False)
    spread = joined(run_ranks(bank_after, 2, str(tmp_path), 1, True))
    for name, value in whole.items():
        assert torch.equal(spread[name], value), name


def test_missing_parts_are_an_error(run_ranks, tmp_path, monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "0")
    run_ranks(bank_after, 1, str(tmp_path), 1, False)
    (tmp_path / "epoch_1.pth.bank").rename(tmp_path / "elsewhere")
    with pytest.raises(FileNotFoundError, match=r"epoch_1\.pth\.bank is missing"):
        run_ranks(bank_after, 2, str(tmp_path), 2, True)
