"""--check: a mistake is one line with its key; a good config says what it does."""

import os
import subprocess
import sys
import textwrap

import pytest
import torch
from mmengine.config import Config
from mmpretrain.registry import MODELS
from paths import REPO

from varcon_plugin.mmpretrain import launch

FOLDER = REPO / "configs" / "varcon_r18_image_folder.py"
DATA = "train_dataloader.dataset"


@pytest.fixture
def check(monkeypatch, image_folder, tmp_path):
    """What ``tools/train.py CONFIG --check`` says: its message, or None; the output."""

    def run(*options, config=FOLDER, work_dir=None):
        given = [f"{DATA}.data_root={image_folder}", "train_dataloader.batch_size=4"]
        if config != FOLDER:
            given = []
        work_dir = work_dir or tmp_path / "run"
        monkeypatch.setattr(
            sys,
            "argv",
            [
                *("train.py", str(config), "--check", "--work-dir", str(work_dir)),
                *("--cfg-options", "randomness.seed=1", *given, *map(str, options)),
            ],
        )
        with pytest.raises(SystemExit) as stopped:
            launch.main("train")
        return stopped.value.code

    return run


def config_file(tmp_path, text, base=FOLDER):
    path = tmp_path / "changed.py"
    path.write_text(f"_base_ = {str(base)!r}\n" + textwrap.dedent(text))
    return path


def test_a_good_config_says_what_it_will_do(check, capsys, tmp_path):
    assert check() is None
    said = dict(
        line.split(maxsplit=1) if not line.startswith("learning") else
        ("lr", line.removeprefix("learning rate").strip())
        for line in capsys.readouterr().out.splitlines()
        if line and not line.startswith("/")
    )  # fmt: skip
    assert said["images"] == "8 of 2 classes"
    assert said["views"] == "2 an image, 32 x 32 pixels"
    assert said["batch"] == (
        "4 images (8 views), 4 on each of 1 process; 2 steps an epoch"
    )
    assert said["lr"] == "0.1, made for 128 images (--auto-scale-lr scales it)"
    # log 2 and as much again: the target is then certain, the prediction even
    assert said["loss"].startswith("1.39 at chance (2 classes in a batch)")
    assert not (tmp_path / "run").exists()


def test_the_learning_rate_is_that_after_scaling(check, capsys, monkeypatch):
    monkeypatch.setenv("VARCON_PROCESSES", "2")
    assert check("auto_scale_lr.enable=True") is None
    said = capsys.readouterr().out
    assert "0.00625 = 0.1 x 8 / 128" in said
    assert "4 on each of 2 processes; 1 steps an epoch" in said


@pytest.mark.parametrize(
    ("option", "message"),
    [
        (
            "model.head.loss.temprature=0.1",
            "model.head.loss.temprature: VarConLoss has no argument temprature (did "
            "you mean temperature?)",
        ),
        ("model.head.loss.temperature=-1", "model.head.loss (VarConLoss): temperature"),
        (
            "model.neck.in_channels=64",
            "model.neck does not take (2, 128, 4, 4) of",
        ),
        ("model.neck.type=MoCoV2Nek", "model.neck.type: there is no MoCoV2Nek (did"),
        ("model.backbone.depth=19", "model.backbone (ResNet_CIFAR): invalid depth 19"),
        (
            f"{DATA}.type=CustomDatset",
            f"{DATA}.type: there is no CustomDatset (did you mean CustomDataset?)",
        ),
        (f"{DATA}.with_label=False", f"{DATA} (ImageFolder): with_label=False: ImageF"),
        (f"{DATA}.data_rot=x", f"{DATA}.data_rot: ImageFolder has no argument"),
        (
            f"{DATA}.pipeline.0.num_vews=3",
            f"{DATA}.pipeline[0].num_vews: TwoCrops has no argument num_vews (did",
        ),
        (
            "model.head.loss.num_classes=1",
            f"model.head.loss.num_classes: 1, but the labels of {DATA} reach 1",
        ),
        (
            "train_dataloader.batch_size=9",
            "train_dataloader.batch_size: 9 is more than the 8 images",
        ),
        ("train_dataloader.collate_fn.type=colate", "train_dataloader.collate_fn.type"),
        ("train_dataloader.sampler.shufle=True", "train_dataloader.sampler.shufle"),
        ("optim_wrapper.optimizer.type=SGDD", "optim_wrapper.optimizer: "),
        ("default_hooks.diagnostics.intervall=1", "default_hooks.diagnostics.interval"),
        ("param_scheduler.1.begn=1", "param_scheduler[1].begn: CosineAnnealingLR has"),
        ("data_preprocessor.to_rbg=True", "model.data_preprocessor.to_rbg"),
        ("load_from=nowhere.pth", "load_from: not found: nowhere.pth"),
    ],
)
def test_a_mistake_is_one_line_with_its_key(option, message, check):
    said = check(option)
    assert said.startswith(f"train.py: {message}")
    assert "\n" not in said


def test_validation_data_is_built_too(check, tmp_path):
    config = config_file(
        tmp_path,
        """
        val_dataloader = dict(
            batch_size=4,
            dataset=dict(
                type="CustomDataset", data_root="/nowhere",
                pipeline=[dict(type="LoadImageFromFile"), dict(type="PackInputs")],
            ),
            sampler=dict(type="DefaultSampler"),
        )
        val_cfg = dict()
        val_evaluator = dict(type="Accuracy")
        """,
    )
    assert "val_dataloader" in check(config=config)


def test_a_work_dir_that_cannot_be_written_to(check, tmp_path):
    (tmp_path / "file").touch()
    said = check(work_dir=tmp_path / "file" / "run")
    assert said.startswith(
        f"train.py: work_dir {tmp_path}/file/run cannot be written: "
    )


def folder_config(tmp_path, dataset):
    return config_file(
        tmp_path,
        f"""
        train_dataloader = dict(batch_size=2, dataset=dict(
            _delete_=True, {dataset}, pipeline={{{{_base_.train_pipeline}}}}))
        """,
    )


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        (
            'type="CustomDataset", data_root="{0}"',
            "its classes would be the splits train, val of {0}: name one of them with "
            f"{DATA}.data_prefix",
        ),
        (
            'type="CustomDataset", data_root="{0}", data_prefix="trian"',
            "trian",
        ),
        (
            'type="CustomDataset", data_root="{0}/train", with_label=False',
            "VarCon needs labels, but the training dataset CustomDataset has no gt",
        ),
        (
            'type="CustomDataset", data_root="{0}/train/n01"',
            "Found 0 files in subfolders of: ",
        ),
        (
            'type="ImageNet", data_root="{0}", split="train"',
            "number of subfolders (2) doesn't match the number of specified classes",
        ),
    ],
)
def test_folders_that_mmpretrain_would_misread(
    dataset, message, check, image_folder, tmp_path
):
    config = folder_config(tmp_path, dataset.format(image_folder))
    said = check(config=config)
    assert said.startswith("train.py: ")
    assert message.format(image_folder) in said
    assert DATA in said or "data folder" in said


def test_weights_of_another_network_are_refused(check, tmp_path):
    cfg = Config.fromfile(FOLDER)
    state = MODELS.build(cfg.model).state_dict()
    same, other, partial = (tmp_path / f"{name}.pth" for name in "abc")
    torch.save({"state_dict": state}, same)
    assert check(f"load_from={same}") is None
    wide = {name: value.repeat_interleave(2, 0) for name, value in state.items()
            if value.ndim}  # fmt: skip
    torch.save({"state_dict": wide}, other)
    assert "has other shapes for" in check(f"load_from={other}")
    less = {name: value for name, value in state.items() if "layer4" not in name}
    torch.save({"state_dict": less}, partial)
    assert "lacks" in check(f"load_from={partial}")


def test_concatenated_datasets_and_views_of_two_sizes_train(tmp_path, image_folder):
    """Two datasets, four views, two of them small."""
    config = config_file(
        tmp_path,
        f"""
        data_preprocessor = dict(
            _delete_=True, type="SelfSupDataPreprocessor",
            mean=[127.5] * 3, std=[63.75] * 3, to_rgb=True)
        large, small = ([dict(type="RandomResizedCrop", scale=s)] for s in (32, 16))
        pipeline = [
            dict(type="LoadImage"),
            dict(type="MultiView", num_views=[2, 2],
                 transforms=[large, small]),
            dict(type="PackInputs"),
        ]
        part = dict(type="ImageFolder", data_root={str(image_folder)!r},
                    pipeline=pipeline)
        train_dataloader = dict(
            batch_size=4, num_workers=0, persistent_workers=False,
            dataset=dict(_delete_=True, type="ConcatDataset",
                         datasets=[part, dict(split="val", **part)]))
        train_cfg = dict(max_epochs=1)
        default_hooks = dict(checkpoint=None, diagnostics=dict(interval=1))
        """,
    )
    code, output = train(config, tmp_path / "run")
    assert code == 0, output
    assert "4 an image, 32 x 32 and 16 x 16 pixels" in output
    assert "images         16 of 2 classes" in output
    assert "[1][4/4]" in output
    for noise in ("Could not import OneDL", "Fail to import"):
        assert noise not in output


PURE_PYTHON = """
default_scope = "mmpretrain"
from mmengine.dataset import DefaultSampler, default_collate
from mmpretrain.datasets import MultiView, PackInputs, RandomResizedCrop
from mmpretrain.models import MoCoV2Neck, ResNet_CIFAR, SelfSupDataPreprocessor
from torch.optim import SGD
from varcon_plugin import VarConLoss
from varcon_plugin.mmpretrain import ImageFolder, LoadImage, VarCon, VarConHead

model = dict(
    type=VarCon,
    backbone=dict(type=ResNet_CIFAR, depth=18, base_channels=8, stem_channels=8),
    neck=dict(type=MoCoV2Neck, in_channels=64, hid_channels=16, out_channels=16),
    head=dict(type=VarConHead, loss=dict(type=VarConLoss)),
)
data_preprocessor = dict(type=SelfSupDataPreprocessor, to_rgb=True)
views = [dict(type=RandomResizedCrop, scale=16)]
train_dataloader = dict(
    batch_size=4, num_workers=0, persistent_workers=False, drop_last=True,
    sampler=dict(type=DefaultSampler, shuffle=True),
    collate_fn=dict(type=default_collate),
    dataset=dict(type=ImageFolder, data_root={root!r}, pipeline=[
        dict(type=LoadImage),
        dict(type=MultiView, num_views=2, transforms=[views]),
        dict(type=PackInputs),
    ]),
)
optim_wrapper = dict(optimizer=dict(type=SGD, lr=0.1))
train_cfg = dict(by_epoch=True, max_epochs=1)
"""


def test_a_config_in_pure_python_trains(tmp_path, image_folder):
    config = tmp_path / "pure.py"
    config.write_text(PURE_PYTHON.replace("{root!r}", repr(str(image_folder))))
    code, output = train(config, tmp_path / "run")
    assert code == 0, output
    assert "[1][2/2]" in output
    code, output = run(
        "tools/evaluate.py", config, tmp_path / "run" / "epoch_1.pth", "--data",
        image_folder, "--out", tmp_path / "report", "--protocols", "knn", "--k", "2",
    )  # fmt: skip
    assert code == 0, output
    code, output = run("tools/browse_views.py", config, tmp_path / "views.png")
    assert code == 0, output
    assert (tmp_path / "views.png").exists()


def train(config, work_dir, *flags):
    return run("tools/train.py", config, "--work-dir", work_dir, *flags)


def run(*command):
    done = subprocess.run(
        [sys.executable, *map(str, command)],
        cwd=REPO,
        # mmpretrain's script leaves LOCAL_RANK behind in this process
        env={k: v for k, v in os.environ.items() if k != "LOCAL_RANK"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=300,
    )
    return done.returncode, done.stdout


def test_two_processes_tell_a_failure_once(tmp_path, image_folder):
    """A file that goes away between the check and the run: one traceback."""
    (tmp_path / "fails.py").write_text(
        "from mmengine.hooks import Hook\n"
        "from mmpretrain.registry import HOOKS\n"
        "@HOOKS.register_module()\n"
        "class Fails(Hook):\n"
        "    def before_train_iter(self, runner, batch_idx, data_batch=None):\n"
        "        raise ValueError('the disk went away')\n"
    )
    config = config_file(
        tmp_path,
        f"""
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        custom_imports = dict(imports=["varcon_plugin.mmpretrain", "fails"])
        custom_hooks = [dict(type="Fails")]
        train_dataloader = dict(batch_size=2, num_workers=0, persistent_workers=False,
                                dataset=dict(data_root={str(image_folder)!r}))
        """,
    )
    done = subprocess.run(
        ["bash", "tools/dist_train.sh", config, "2", "--work-dir", tmp_path / "run"],
        cwd=REPO, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        timeout=300,
    )  # fmt: skip
    assert done.returncode != 0
    assert done.stdout.count("in before_train_iter") == 1  # of one traceback
    assert "ends too: ValueError: the disk went away" in done.stdout


def test_a_run_of_one_class_ends(tmp_path, image_folder):
    (tmp_path / "train").mkdir()
    (tmp_path / "train" / "n01").symlink_to(image_folder / "train" / "n01")
    options = (
        f"train_dataloader.dataset.data_root={tmp_path}",
        "train_dataloader.batch_size=2", "train_dataloader.num_workers=0",
        "train_dataloader.persistent_workers=False",
    )  # fmt: skip
    code, output = train(FOLDER, tmp_path / "run", "--cfg-options", *options)
    assert code != 0
    assert "WARNING - a batch holds images of a single class: the loss is 0" in output
    assert "and so do all 16 from the start: nothing is learned" in output
    assert not [*(tmp_path / "run").glob("*.pth")]
