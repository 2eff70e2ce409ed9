"""Every recipe: interrupted within an epoch and resumed equals uninterrupted."""

import functools
import math
import shutil
import uuid
from copy import deepcopy
from operator import eq
from pathlib import Path

import pytest
import torch
from mmengine.config import Config
from mmengine.dist import barrier, get_rank, get_world_size
from mmengine.hooks import Hook
from mmengine.runner import Runner
from mmpretrain.registry import MODELS
from paths import REPO
from shrunk import narrow, shrink

from varcon_plugin.checkpoints.reading import read_checkpoint
from varcon_plugin.mmpretrain import StopHook

CONFIGS = REPO / "configs"
NAMES = {
    str(path.relative_to(CONFIGS))
    for path in (*CONFIGS.glob("*.py"), *CONFIGS.glob("baselines/*.py"))
}
LIKE_ANOTHER = {  # but for numbers and places of data
    *("varcon_r101_imagenet.py", "varcon_r50_imagenet_8x32gb.py"),
    *("varcon_r101_imagenet_linear.py", "varcon_r50_imagenet100_linear.py"),
    "varcon_r50_imagenet_multicrop_linear.py",
    "varcon_r50_imagenet_supcon_linear.py",
    "varcon_speedrun_cifar100.py",
}
LOSSES = {  # all that is their own in baselines
    f"baselines/{name}.py"
    for name in (
        *("ce_r18_digits", "ce_smoothing_r18_digits", "supcon_r18_digits"),
        *("prototype_r18_digits", "prototype_r18_image_folder"),
    )
}
BASELINES = {name for name in NAMES if name.startswith("baselines/")}
KINDS = sorted(NAMES - LIKE_ANOTHER - BASELINES | LOSSES)
PLACES = (
    *("data_root", "ann_file", "data_prefix", "split", "checkpoint"),
    "auto_scale_lr",
)
EPOCHS, BATCH, IMAGES = 2, 3, 8  # the last step of an epoch has fewer images
SAVED = "state_dict", "optimizer", "param_schedulers"


@functools.cache
def recipe(name):
    return Config.fromfile(CONFIGS / name)


def structure(part):
    """A config without numbers and places of data."""
    if isinstance(part, dict):
        return {k: structure(v) for k, v in part.items() if k not in PLACES}
    if isinstance(part, list | tuple):
        return [structure(value) for value in part]
    number = isinstance(part, int | float) and not isinstance(part, bool)
    return 0 if number else part


def test_recipes_that_are_not_run_here_are_like_one_that_is():
    """Of baselines all but the head is their recipe's: see test_configs.py."""
    run = [structure(recipe(name).to_dict()) for name in KINDS]
    heads = [content["model"]["head"] for content in run]
    for name in NAMES - set(KINDS):
        content = structure(recipe(name).to_dict())
        assert content in run or (
            name in BASELINES and content["model"]["head"] in heads
        ), name


def small(name, image_folder, folder):
    """A recipe of six steps of few small images on a narrow network."""
    cfg = deepcopy(recipe(name))
    workers = min(1, cfg.train_dataloader.num_workers)
    cfg = shrink(cfg, image_folder, folder)
    narrow(cfg.model)
    cfg.train_dataloader.update(batch_size=BATCH, num_workers=workers)
    if workers:
        cfg.train_dataloader.persistent_workers = True
    cfg.train_cfg.max_epochs = EPOCHS
    labels = (cfg.model.head.get("loss") or {}).get("pseudo_labels")
    if labels is not None:
        cfg.model.head.loss.latent_after = 2
    if "init_cfg" in cfg.model.backbone:
        cfg.model.backbone.init_cfg.checkpoint = pretrained(cfg.model.backbone, folder)
    cfg.default_hooks.checkpoint = {
        "type": "mmpretrain.DurableCheckpointHook",
        "interval": EPOCHS,
    }
    cfg.experiment_name = f"{uuid.uuid4().hex}_{get_rank()}"
    return cfg


def pretrained(backbone, folder):
    """A checkpoint for ``init_cfg``."""
    torch.manual_seed(1)
    model = MODELS.build({k: v for k, v in backbone.items() if k != "init_cfg"})
    state = {f"backbone.{name}": value for name, value in model.state_dict().items()}
    path = Path(folder).with_suffix(".weights")
    torch.save({"state_dict": state}, path)
    return str(path)


class SaveBeforeLast(Hook):
    """Keeps what would be saved if the run were stopped, one step before its end."""

    priority = "LOWEST"

    def __init__(self, path):
        self.path = path

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 2 == runner.max_iters:
            (hook,) = (h for h in runner.hooks if isinstance(h, StopHook))
            written = hook.save(runner, batch_idx)
            if get_rank() == 0:
                shutil.move(written, self.path)


def run(name, image_folder, folder, *, save=None, resume=None):
    """What the last checkpoint of a run holds."""
    cfg = small(name, image_folder, folder)
    if resume is not None:
        cfg.resume, cfg.load_from = True, str(resume)
    if get_world_size() > 1:
        cfg.model_wrapper_cfg = {"type": "CPUDistributedDataParallel"}
        # no batch of one image, and the processes of the fixture may start none
        cfg.train_dataloader.update(
            batch_size=2, num_workers=0, persistent_workers=False
        )
    runner = Runner.from_cfg(cfg)
    if save is not None:
        runner.register_hook(SaveBeforeLast(save))
    runner.train()
    images = get_world_size() * cfg.train_dataloader.batch_size
    assert runner.iter == EPOCHS * math.ceil(IMAGES / images)
    barrier()
    content = read_checkpoint(Path(folder) / f"epoch_{EPOCHS}.pth", "cpu")
    return {part: content[part] for part in SAVED}


def leaves(content, key=""):
    """Everything in a checkpoint, under names."""
    if isinstance(content, dict | list | tuple):
        items = content.items() if isinstance(content, dict) else enumerate(content)
        for name, value in items:
            yield from leaves(value, f"{key}/{name}")
    else:
        yield key, content


def assert_equal(one, other):
    one, other = dict(leaves(one)), dict(leaves(other))
    assert one.keys() == other.keys()
    for name, value in one.items():
        same = torch.equal if isinstance(value, torch.Tensor) else eq
        assert same(value, other[name]), name


def resume_equals_whole(_rank, name, image_folder, folder):
    saved = folder / "interrupted.pth"
    whole = run(name, image_folder, folder / "whole", save=saved)
    resumed = run(name, image_folder, folder / "resumed", resume=saved)
    assert_equal(resumed, whole)


# three images may well be of one class
@pytest.mark.filterwarnings("ignore:VarConLoss is 0 with gradient 0:UserWarning")
@pytest.mark.parametrize("name", KINDS)
def test_interrupted_and_resumed_equals_uninterrupted(name, image_folder, tmp_path):
    resume_equals_whole(0, name, image_folder, tmp_path)


def test_on_two_processes(run_ranks, image_folder, tmp_path, monkeypatch):
    """A bank, a slow encoder, small crops, augmentation on the batch."""
    monkeypatch.setenv("LOCAL_RANK", "0")
    name = "varcon_r50_imagenet_multicrop.py"
    run_ranks(resume_equals_whole, 2, name, image_folder, tmp_path)
