"""Every recipe builds and takes two optimiser steps; some numbers are pinned."""

import pytest
import torch
from conftest import REPO
from mmengine.config import Config
from mmengine.runner import Runner

from varcon_plugin.mmpretrain.launch import prepare

CONFIGS = sorted(
    str(path.relative_to(REPO / "configs"))
    for folder in ("configs", "configs/baselines")
    for path in (REPO / folder).glob("*.py")
)
SMALL = {  # fewer layers of the same width: the parts fit as in the full network
    "resnet200": {"layers": (1, 1, 1, 1)},
    "vit_base_patch16_224": {"depth": 1, "img_size": 32},
}


def shrink(cfg, image_folder, work_dir):
    """Two steps of four small images, generated JPEGs; digits stay what they are."""
    dataset = {"type": "CustomDataset", "data_root": str(image_folder)}
    for loader, split in (("train_dataloader", "train"), ("val_dataloader", "val")):
        if cfg.get(loader) is None:
            continue
        cfg[loader].update(batch_size=4, num_workers=0, persistent_workers=False)
        cfg[loader].pop("drop_last", None)
        if cfg[loader].dataset.type != "Digits":
            pipeline = cfg[loader].dataset.pipeline
            if pipeline[0].type != "LoadImageFromFile":  # CIFAR holds its images
                pipeline = [{"type": "LoadImageFromFile"}, *pipeline]
            cfg[loader].dataset = {
                **dataset,
                "data_prefix": split,
                "pipeline": small_crops(pipeline),
            }
        cfg[loader].dataset["indices"] = 8
    backbone = cfg.model.backbone
    backbone.update(SMALL.get(backbone.get("model_name"), {}))
    cfg.randomness = {"seed": 0}
    cfg.train_cfg = {"by_epoch": True, "max_epochs": 1}
    cfg.work_dir, cfg.launcher = str(work_dir), "none"
    prepare(cfg, "train")
    return cfg


def small_crops(steps):
    """The same pipeline with crops of 32 pixels."""
    if isinstance(steps, list):
        return [small_crops(step) for step in steps]
    if not isinstance(steps, dict):
        return steps
    small = {key: small_crops(value) for key, value in steps.items()}
    size = {"RandomResizedCrop": "scale", "CenterCrop": "crop_size"}
    if (key := size.get(small.get("type"))) is not None:
        small[key] = 32
    return small


@pytest.fixture(scope="module")
def checkpoints():
    return {}


@pytest.mark.parametrize("name", sorted(CONFIGS, key=lambda name: "linear" in name))
def test_config_takes_two_optimiser_steps(name, image_folder, tmp_path, checkpoints):
    cfg = shrink(Config.fromfile(REPO / "configs" / name), image_folder, tmp_path)
    if "linear" in name:
        pretrained = checkpoints[name.replace("_linear", "")]
        cfg.model.backbone.init_cfg.checkpoint = pretrained
    runner = Runner.from_cfg(cfg)
    frozen = {n for n, p in runner.model.named_parameters() if not p.requires_grad}
    runner.train()
    assert runner.iter == 2
    assert all(torch.isfinite(p).all() for p in runner.model.parameters())
    assert bool(frozen) == ("linear" in name)
    if "linear" not in name:
        checkpoints[name] = str(tmp_path / "epoch_1.pth")


def test_imagenet_differs_from_simclr_in_the_head_the_batch_split_and_amp():
    ours = Config.fromfile(REPO / "configs" / "varcon_r50_imagenet.py")
    simclr = Config.fromfile(REPO / "tests" / "mmpretrain_adapter" / "simclr_r50.py")
    for key in ("backbone", "neck"):
        assert ours.model[key] == simclr.model[key]
    assert ours.optim_wrapper.optimizer == simclr.optim_wrapper.optimizer
    assert ours.optim_wrapper.paramwise_cfg == simclr.optim_wrapper.paramwise_cfg
    assert ours.param_scheduler == simclr.param_scheduler
    assert ours.train_dataloader.dataset == simclr.train_dataloader.dataset
    assert ours.train_cfg == simclr.train_cfg
    base = 16 * simclr.train_dataloader.batch_size
    assert 8 * ours.train_dataloader.batch_size == base
    assert ours.auto_scale_lr.base_batch_size == base


def test_cifar100_is_the_authors_run_with_the_exact_gradient():
    cfg = Config.fromfile(REPO / "configs" / "varcon_r50_cifar100.py")
    optimizer = cfg.optim_wrapper.optimizer
    ranks = 8
    assert optimizer.lr == pytest.approx(0.5 / ranks)
    assert optimizer.weight_decay == pytest.approx(1e-4 * ranks)
    assert ranks * cfg.train_dataloader.batch_size == 1024
    assert cfg.auto_scale_lr.base_batch_size == 1024
    assert cfg.param_scheduler[0].start_factor == pytest.approx(0.01 / 0.5)
