"""Configs of other kinds than ours: pure Python, several datasets, views of sizes."""

import json
import os
import sys
from unittest.mock import patch

import pytest
import torch
from mmengine.config import Config
from mmpretrain.registry import MODELS
from paths import REPO

from varcon_plugin.commands import browse, evaluate
from varcon_plugin.mmpretrain import launch
from varcon_plugin.mmpretrain.evaluation import load_splits

BASE = """
from mmengine.dataset import DefaultSampler, default_collate
from mmpretrain.datasets import MultiView, PackInputs, RandomFlip, RandomResizedCrop
from mmpretrain.models import MoCoV2Neck, ResNet_CIFAR, SelfSupDataPreprocessor
from torch.optim import SGD
from varcon_plugin import VarConLoss
from varcon_plugin.mmpretrain import (
    ImageFolder, LoadImage, VarCon, VarConDiagnosticsHook, VarConHead,
)

default_scope = "mmpretrain"
model = dict(
    type=VarCon,
    backbone=dict(type=ResNet_CIFAR, depth=18, base_channels=8, stem_channels=8),
    neck=dict(type=MoCoV2Neck, in_channels=64, hid_channels=16, out_channels=16),
    head=dict(type=VarConHead, loss=dict(type=VarConLoss)),
    data_preprocessor=dict(
        type=SelfSupDataPreprocessor, mean=[127.5] * 3, std=[51.0] * 3, to_rgb=True),
)
large = [dict(type=RandomResizedCrop, scale=24), dict(type=RandomFlip, prob=0.5)]
small = [dict(type=RandomResizedCrop, scale=16)]
pipeline = [
    dict(type=LoadImage),
    dict(type=MultiView, num_views=[2, 1], transforms=[large, small]),
    dict(type=PackInputs),
]
train_dataloader = dict(
    batch_size=8, num_workers=0, persistent_workers=False, drop_last=True,
    sampler=dict(type=DefaultSampler, shuffle=True),
    collate_fn=dict(type=default_collate),
    dataset=dict(type=ImageFolder, data_root="/nowhere", pipeline=pipeline),
)
optim_wrapper = dict(optimizer=dict(type=SGD, lr=0.1))
train_cfg = dict(by_epoch=True, max_epochs=1)
randomness = dict(seed=0)
default_hooks = dict(diagnostics=dict(type=VarConDiagnosticsHook, interval=1))
"""
CHILD = """
from mmengine.config import read_base
from mmengine.dataset import ConcatDataset, RepeatDataset
from varcon_plugin.mmpretrain import ImageFolder

with read_base():
    from .base import *

parts = [
    dict(type=ImageFolder, data_root={root!r}, split=split, pipeline=pipeline)
    for split in ("train", "val")
]
train_dataloader.dataset = dict(
    type=ConcatDataset,
    datasets=[dict(type=RepeatDataset, times=2, dataset=parts[0]), parts[1]],
)
optim_wrapper.optimizer.lr = 0.05
"""


@pytest.fixture(scope="module")
def lazy(tmp_path_factory, image_folder):
    """A config that inherits from another one with `read_base`."""
    folder = tmp_path_factory.mktemp("lazy")
    (folder / "base.py").write_text(BASE)
    (folder / "child.py").write_text(CHILD.format(root=str(image_folder)))
    return folder / "child.py"


@pytest.fixture(scope="module")
def trained(lazy):
    """What `tools/train.py` leaves behind."""
    argv = ["train.py", str(lazy), "--work-dir", str(lazy.parent / "run")]
    with patch.dict(os.environ), patch.object(sys, "argv", argv):
        launch.main("train")
    return lazy.parent / "run"


def test_read_base_several_datasets_and_sizes_train(trained):
    lines = (trained / "diagnostics" / "scalars.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3]
    assert Config.fromfile(trained / "child.py").optim_wrapper.optimizer.lr == 0.05


def test_it_is_evaluated(lazy, trained, image_folder, tmp_path):
    data = ["--data", str(image_folder), "--protocols", "knn", "--k", "2"]
    arguments = [str(lazy), str(trained / "epoch_1.pth"), "--out", str(tmp_path)]
    evaluate.main([*arguments, *data])
    report = json.loads((tmp_path / "report.json").read_text())
    assert "'scale': 24" in report["data"]["transform"]  # the large crop
    assert report["model"]["normalisation"].startswith("mean (0.5, 0.5, 0.5), standard")
    assert "Pixels: mean (0.5, 0.5, 0.5)" in (tmp_path / "report.md").read_text()


def test_its_views_are_drawn(lazy, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(browse, "draw", lambda rows, bgr, path: drawn.extend(rows))
    browse.main([str(lazy), str(tmp_path / "views.png"), "--images", "2"])
    assert [name for name, _ in drawn] == ["n01", "n02"]
    assert [v.shape[-1] for v in drawn[0][1]] == [24, 24, 16]


def test_what_a_repetition_repeats_is_evaluated_once(lazy, image_folder, tmp_path):
    config = tmp_path / "tested.py"
    config.write_text(
        f"_base_ = {str(REPO / 'configs' / 'varcon_r18_image_folder.py')!r}\n"
        f"part = dict(type='ImageFolder', data_root={str(image_folder)!r})\n"
        "fold = dict(type='KFoldDataset', num_splits=4, dataset=part)\n"
        "train_dataloader = dict(dataset=dict(_delete_=True, type='RepeatDataset',"
        " times=3, dataset=fold))\n"
        "val_dataloader = dict(dataset=dict(type='ConcatDataset',"
        " datasets=[dict(test_mode=True, **fold), dict(split='val', **part)]))\n"
    )
    splits = load_splits(config)
    assert len(splits.train.items) == 6
    assert len(splits.test.items) == 2 + 8
    assert not {*splits.train.items} & {*splits.test.items}
    assert splits.train.classes == ("n01", "n02")


def test_the_views_of_a_multi_crop_recipe(image_folder, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(browse, "draw", lambda rows, bgr, path: drawn.extend(rows))
    child = tmp_path / "child.py"
    child.write_text(
        f"_base_ = {str(REPO / 'configs' / 'varcon_r50_imagenet_multicrop.py')!r}\n"
        "train_dataloader = dict(dataset=dict(type='ImageFolder', "
        f"data_root={str(image_folder)!r}))\n"
    )
    browse.main([str(child), str(tmp_path / "views.png"), "--images", "1"])
    ((_, views),) = drawn
    sizes = [view.shape[-1] for view in views]
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) == 2


def test_browsing_what_cannot_be_built_is_one_line(tmp_path):
    recipe = "varcon_r18_image_folder"
    options = ["--cfg-options", "train_dataloader.dataset.data_root=/nowhere"]
    with pytest.raises(SystemExit) as stopped:
        browse.main([recipe, str(tmp_path / "views.png"), *options])
    assert "train_dataloader.dataset" in stopped.value.code
    assert "/nowhere" in stopped.value.code
    assert "\n" not in stopped.value.code


def test_a_lazy_config_is_tested(trained, lazy, image_folder, monkeypatch, capsys):
    """`tools/test.py` on a classifier of pure Python."""
    config = lazy.parent / "classifier.py"
    config.write_text(
        f"""
from mmengine.config import read_base
from mmpretrain.datasets import Resize
from mmpretrain.evaluation import Accuracy
from mmpretrain.models import GlobalAveragePooling, ImageClassifier, LinearClsHead
from mmpretrain.models import ClsDataPreprocessor

with read_base():
    from .base import *

model = dict(
    type=ImageClassifier, backbone=model.backbone,
    neck=dict(type=GlobalAveragePooling),
    head=dict(type=LinearClsHead, num_classes=2, in_channels=64, topk=(1,)),
    data_preprocessor=dict(type=ClsDataPreprocessor, num_classes=2),
)
test_dataloader = dict(
    batch_size=4, num_workers=0, persistent_workers=False,
    sampler=dict(type=DefaultSampler, shuffle=False),
    dataset=dict(
        type=ImageFolder, data_root={str(image_folder)!r}, split="val",
        pipeline=[dict(type=LoadImage), dict(type=Resize, scale=24),
                  dict(type=PackInputs)],
    ),
)
test_cfg = dict()
test_evaluator = dict(type=Accuracy, topk=(1,))
"""
    )
    weights = lazy.parent / "classifier.pth"
    model = MODELS.build(Config.fromfile(config).model)
    torch.save({"state_dict": model.state_dict(), "meta": {}}, weights)
    work_dir = str(lazy.parent / "test")
    argv = ["test.py", str(config), str(weights), "--work-dir", work_dir]
    monkeypatch.setattr(sys, "argv", argv)
    launch.main("test")
    assert [*(lazy.parent / "test").glob("*/*.json")]
