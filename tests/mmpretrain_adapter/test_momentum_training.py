"""The bank and the balanced sampler in a run through mmengine."""

import uuid
from collections import Counter

import torch
from mmengine.config import Config
from mmengine.runner import Runner
from paths import REPO

from varcon_plugin import MomentumCentroids
from varcon_plugin.mmpretrain.launch import prepare


def run(tmp_path, **changes):
    cfg = Config.fromfile(REPO / "configs" / "varcon_r18_digits.py")
    centroids = {"type": "MomentumCentroids", "num_classes": 10, "dim": 64}
    cfg.model.head.loss = {"type": "VarConLoss", "centroids": centroids}
    cfg.train_dataloader.batch_size = 20
    cfg.train_dataloader.sampler = {
        "type": "ClassBalancedSampler",
        "classes_per_batch": 5,
        "images_per_class": 4,
        "num_batches": 3,
    }
    cfg.default_hooks.checkpoint.interval = 1
    cfg.work_dir, cfg.launcher = str(tmp_path), "none"
    cfg.experiment_name = uuid.uuid4().hex  # mmengine's own has a resolution of 1 s
    cfg.merge_from_dict(changes)
    prepare(cfg, "train")
    runner = Runner.from_cfg(cfg)
    runner.train()
    return runner


def test_balanced_batches_move_the_bank_and_a_resumed_run_goes_on_with_it(tmp_path):
    runner = run(tmp_path / "a", **{"train_cfg.max_epochs": 1})
    bank = runner.model.head.loss_module.centroids
    assert isinstance(bank, MomentumCentroids)
    assert bank.counts.sum() == 2 * 3 * 20  # views, batches, images
    assert set((bank.counts % 8).tolist()) == {0}  # 2 views of 4 images at a time
    resumed = run(tmp_path / "a", **{"train_cfg.max_epochs": 2, "resume": True})
    whole = run(tmp_path / "b", **{"train_cfg.max_epochs": 2})
    counts = resumed.model.head.loss_module.centroids.counts
    assert counts.sum() == 2 * bank.counts.sum()
    assert torch.equal(counts, whole.model.head.loss_module.centroids.counts)


def test_a_run_in_micro_batches_updates_statistics_once_for_each(tmp_path):
    changes = {"train_cfg.max_epochs": 1, "model.micro_batch_size": 15}
    model = run(tmp_path, **changes).model
    layers = [m for m in model.modules() if hasattr(m, "num_batches_tracked")]
    assert layers
    for layer in layers:  # a view of a batch is 20 images: 15 and 5
        assert layer.num_batches_tracked == 3 * 2 * 2
    assert model.head.loss_module.centroids.counts.sum() == 2 * 3 * 20


def test_the_sampler_balances_the_digits():
    from mmpretrain.registry import DATA_SAMPLERS, DATASETS

    dataset = DATASETS.build({"type": "Digits"})
    sampler = DATA_SAMPLERS.build(
        {
            "type": "ClassBalancedSampler",
            "classes_per_batch": 2,
            "images_per_class": 3,
            "num_batches": 1,
            "seed": 0,
        },
        default_args={"dataset": dataset},
    )
    labels = dataset.get_gt_labels()[list(sampler)]
    assert sorted(Counter(labels.tolist()).values()) == [3, 3]
