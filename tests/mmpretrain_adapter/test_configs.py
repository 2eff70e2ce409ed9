"""Every recipe builds and takes two optimiser steps; some numbers are pinned."""

import re
import shutil

import pytest
import torch
from mmengine.config import Config
from mmengine.runner import Runner
from mmpretrain.registry import MODELS
from paths import REPO
from shrunk import shrink

RECIPES = sorted(path.name for path in (REPO / "configs").glob("*.py"))
RESNETS = [n for n in RECIPES if re.fullmatch(r"varcon_r\d+_imagenet(?!.*linear).*", n)]
BASELINES = sorted(
    f"baselines/{path.name}" for path in (REPO / "configs/baselines").glob("*.py")
)
# the baselines of the larger networks are compared with their recipe below
SMALL_BASELINES = [n for n in BASELINES if "r18" in n or "speedrun_cifar10." in n]
CONFIGS = RECIPES + SMALL_BASELINES


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
    frozen = {name for name in frozen if not name.startswith(("teacher.", "ema."))}
    runner.train()
    assert runner.iter == 2
    assert all(torch.isfinite(p).all() for p in runner.model.parameters())
    assert bool(frozen) == ("linear" in name)
    if (tmp_path / "epoch_1.pth").exists():
        checkpoints[name] = str(tmp_path / "epoch_1.pth")


@pytest.mark.parametrize("name", RECIPES + BASELINES)
def test_workers_persist_only_where_there_are_some(name):
    loader = Config.fromfile(REPO / "configs" / name).train_dataloader
    # mmengine's default is True; torch refuses that without workers
    assert loader.num_workers > 0 or not loader.get("persistent_workers", True)


def test_imagenet_differs_from_simclr_in_head_batch_split_norm_speed_and_pipeline():
    ours = Config.fromfile(REPO / "configs" / "varcon_r50_imagenet.py")
    simclr = Config.fromfile(REPO / "tests" / "mmpretrain_adapter" / "simclr_r50.py")
    assert ours.model.backbone.pop("norm_cfg") == {"type": "BN"}
    assert simclr.model.backbone.pop("norm_cfg") == {"type": "SyncBN"}
    assert ours.model.neck.pop("norm_cfg") == {"type": "BN1d"}
    for key in ("backbone", "neck"):
        assert ours.model[key] == simclr.model[key]
    assert ours.optim_wrapper.optimizer.pop("type") == "ForeachLARS"
    assert simclr.optim_wrapper.optimizer.pop("type") == "LARS"
    assert ours.optim_wrapper.optimizer == simclr.optim_wrapper.optimizer
    assert ours.env_cfg.cudnn_benchmark
    assert ours.optim_wrapper.paramwise_cfg == simclr.optim_wrapper.paramwise_cfg
    assert ours.param_scheduler == simclr.param_scheduler
    steps = [step.type for step in ours.train_dataloader.dataset.pop("pipeline")]
    assert steps == ["TwoCrops", "PackInputs"]
    simclr.train_dataloader.dataset.pop("pipeline")
    assert ours.train_dataloader.dataset == simclr.train_dataloader.dataset
    assert ours.data_preprocessor.pop("type") == "BatchAugmentDataPreprocessor"
    assert ours.data_preprocessor.pop("channels_last")
    simclr.data_preprocessor.pop("type")
    assert ours.data_preprocessor == simclr.data_preprocessor
    assert ours.train_cfg == simclr.train_cfg
    base = 16 * simclr.train_dataloader.batch_size
    assert 8 * ours.train_dataloader.batch_size == base
    assert ours.auto_scale_lr.base_batch_size == base


def test_the_stock_pipeline_is_one_line_away(tmp_path):
    """Swapping the base for the one that its comment names gives mmpretrain's data."""
    text = (REPO / "configs" / "varcon_r50_imagenet.py").read_text()
    stock = '"mmpretrain::simclr/simclr_resnet50_16xb256-coslr-200e_in1k.py",'
    ours = '"_base_/simclr_r50_batch_augment.py",'
    assert f"    # {stock}\n    {ours}" in text
    shutil.copytree(REPO / "configs" / "_base_", tmp_path / "_base_")
    swapped = tmp_path / "stock.py"
    swapped.write_text(text.replace(ours, stock))
    cfg = Config.fromfile(swapped)
    simclr = Config.fromfile(REPO / "tests" / "mmpretrain_adapter" / "simclr_r50.py")
    assert cfg.train_dataloader.dataset == simclr.train_dataloader.dataset
    assert cfg.data_preprocessor == simclr.data_preprocessor
    assert cfg.model.type == "VarCon"


def test_cifar100_is_the_authors_run_with_the_exact_gradient():
    cfg = Config.fromfile(REPO / "configs" / "varcon_r50_cifar100.py")
    optimizer = cfg.optim_wrapper.optimizer
    ranks = 8
    assert optimizer.lr == pytest.approx(0.5 / ranks)
    assert optimizer.weight_decay == pytest.approx(1e-4 * ranks)
    assert ranks * cfg.train_dataloader.batch_size == 1024
    assert cfg.auto_scale_lr.base_batch_size == 1024
    assert cfg.param_scheduler[0].start_factor == pytest.approx(0.01 / 0.5)


@pytest.mark.parametrize("name", BASELINES)
def test_a_baseline_differs_from_its_recipe_in_the_loss_alone(name):
    recipe = "varcon_" + re.sub(r".*?(?=r\d+_|speedrun_)", "", name)
    ours = Config.fromfile(REPO / "configs" / recipe).to_dict()
    baseline = Config.fromfile(REPO / "configs" / name).to_dict()
    for cfg in (ours, baseline):
        cfg.pop("default_hooks")  # they watch and save
    models = ours.pop("model"), baseline.pop("model")
    assert baseline == ours
    heads = [model.pop("head") for model in models]
    necks = [model.pop("neck") for model in models]
    told = heads[0]["loss"].get("centroids", heads[0]["loss"])  # how many classes
    assert models[0] == models[1]
    assert heads[0] != heads[1]
    if heads[1]["type"] == "LossHead":
        assert necks[0] == necks[1]
        loss = heads[1]["loss"]
        assert loss["temperature"] == heads[0]["loss"]["temperature"]
        if loss["type"] == "PrototypeLoss" and "folder" not in name:
            assert loss["num_classes"] == told["num_classes"]
    else:
        assert heads[1]["in_channels"] == necks[0]["in_channels"]
        assert heads[1]["num_classes"] == told.get("num_classes", 10)
    head = MODELS.build(heads[1])
    images = torch.randn(8, heads[1].get("in_channels", 128), requires_grad=True)
    head.loss(images, torch.arange(8) % 4)["loss"].backward()
    assert images.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "name",
    [n for n in RECIPES if "imagenet" in n and "linear" not in n and "vit" not in n],
)
def test_batch_statistics_cross_gpus_where_a_gpu_holds_fewer_than_256_views(name):
    cfg = Config.fromfile(REPO / "configs" / name)
    views = 2 * cfg.train_dataloader.batch_size
    norms = [cfg.model.neck.norm_cfg.type]
    if "norm_cfg" in cfg.model.backbone:
        norms.append(cfg.model.backbone.norm_cfg.type)
    assert {norm == "SyncBN" for norm in norms} == {views < 256}
    assert "sync_bn" not in cfg
