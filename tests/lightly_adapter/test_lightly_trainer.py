"""tools/train_lightly.py, on a small folder of images."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch

from varcon_plugin.commands import evaluate, train_lightly

REPO = Path(__file__).parents[2]
TOOL = REPO / "tools" / "train_lightly.py"
RESULTS = {"knn_top1", "knn_top5", "linear_top1", "linear_top5"}


@pytest.fixture(scope="module")
def tool():
    return train_lightly


@pytest.fixture
def unchanged_environment():
    """DDP leaves LOCAL_RANK, with which Lightning would start no second process."""
    with patch.dict(os.environ):
        yield


@pytest.fixture
def arguments(image_folder, tmp_path):
    return [
        *("--data", str(image_folder), "--image-size", "32"),
        *("--backbone", "test_resnet", "--batch-size-per-device", "8"),
        *("--epochs", "2", "--accelerator", "cpu", "--output-dir", str(tmp_path)),
    ]


def logged(folder, version):
    """Values of each epoch's validation accuracy in the CSV log."""
    with (folder / "csv" / f"version_{version}" / "metrics.csv").open() as file:
        column = "val_knn_top1"
        rows = [row for row in csv.DictReader(file) if row[column]]
    return {int(row["epoch"]): float(row[column]) for row in rows}


# On --resume, Lightning notes that it saves where it saved before.
@pytest.mark.filterwarnings(
    "ignore:Checkpoint directory .* exists and is not empty:UserWarning"
)
def test_a_run_leaves_logs_checkpoints_and_results_and_can_be_resumed(
    tool, arguments, tmp_path, capsys
):
    tool.main([*arguments, "--seed", "5"])
    results = json.loads((tmp_path / "results.json").read_text())
    assert set(results) == RESULTS
    assert results["knn_top1"] == results["linear_top1"] == 100  # red or blue
    assert "linear_top1  100.00 %" in capsys.readouterr().out
    assert (tmp_path / "tensorboard" / "version_0").is_dir()
    assert list(logged(tmp_path, 0)) == [0, 1]

    last = tmp_path / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=True)["epoch"] == 1
    (tmp_path / "results.json").unlink()
    tool.main([*arguments, "--epochs", "3", "--resume", "--seed", "5"])
    assert torch.load(last, weights_only=True)["epoch"] == 2
    assert list(logged(tmp_path, 1)) == [2]
    assert (tmp_path / "results.json").is_file()

    command = ["lightly", str(last), "--data", "digits", "--out", str(tmp_path)]
    encoder = evaluate.read_encoder(evaluate.parse_args(command))
    assert encoder.transform(np.zeros((8, 8, 3), np.uint8)).shape == (3, 32, 32)


def test_diagnostics_are_a_callback(tool, arguments, tmp_path):
    for flags, expected in (([], []), (["--diagnostics"], [tmp_path / "diagnostics"])):
        trainer = tool.create_trainer(
            tool.parse_args([*arguments, *flags]), tool.ResumableSampler(24, 0)
        )
        found = [getattr(c, "directory", None) for c in trainer.callbacks]
        assert [directory for directory in found if directory] == expected


def test_leave_one_out_reaches_the_loss(tool, image_folder):
    args = tool.parse_args(["--data", str(image_folder), "--leave-one-out"])
    model = tool.create_model(args, tool.create_datasets(args.data))
    assert model.criterion.centroids.leave_one_out


# On --resume, Lightning notes that it saves where it saved before.
@pytest.mark.filterwarnings(
    "ignore:Checkpoint directory .* exists and is not empty:UserWarning"
)
def test_every_option_of_the_bank_trains_and_resumes(
    tool, arguments, tmp_path, caplog, unchanged_environment
):
    bank = ["--centroid-momentum", "0.9", "--shard-centroids", "--num-negatives", "1"]
    flags = [*arguments, *bank, "--accumulate", "2", "--ema-decay", "0.9"]
    tool.main([*flags, "--epochs", "1"])
    files = tmp_path / "checkpoints"
    assert [path.name for path in files.glob("*.bank")] == ["epoch=0000.ckpt.bank"]
    tool.main([*flags, "--resume"])
    last = torch.load(files / "epoch=0001.ckpt", weights_only=True)
    assert last["global_step"] == 4  # three batches are two steps
    # Lightning keeps the file that a run was resumed from, and so its bank
    kept = {path.name for path in files.glob("epoch=*.ckpt")}
    assert {path.stem for path in files.glob("*.bank")} == kept
    assert "epoch=0001.ckpt" in kept
    assert "--knn-k 200 is more than the 24 training images" in caplog.text


def test_without_labels_reaches_the_module(tool, image_folder):
    data = ["--data", str(image_folder), "--without-labels"]
    datasets = tool.create_datasets(str(image_folder))
    model = tool.create_model(tool.parse_args(data), datasets)
    assert model.criterion.pseudo_labels is None
    flags = tool.parse_args([*data, "--latent-classes", "8"])
    model = tool.create_model(flags, datasets)
    assert model.criterion.pseudo_labels.num_classes == 8
    assert model.teacher is not None
    with pytest.raises(ValueError, match="--latent-classes goes with --without"):
        tool.create_model(
            tool.parse_args([*data[:2], "--latent-classes", "8"]), datasets
        )


def test_two_processes_train_and_evaluate(arguments, tmp_path):
    command = [sys.executable, str(TOOL), *arguments, "--devices", "2"]
    run = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=240
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.count("linear_top1") == 1
    assert set(json.loads((tmp_path / "results.json").read_text())) == RESULTS
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2  # 24 images in steps of 2 x 8, twice


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--data", "cats"], 'data must be "digits"'),
        (["--backbone", "resnet5"], "must be the name of a timm model, got 'resnet5'"),
        (["--batch-size-per-device", "25"], "more than the 24 training images"),
        (["--epsilon", "0.2"], "epsilon must be in"),
        (["--num-negatives", "2"], "num_negatives needs a centroid_momentum, got None"),
        (["--shard-centroids"], "shard_centroids needs a centroid_momentum, got None"),
        (["--without-labels", "--ema-decay", "0.9"], "not for VarConSSL: leave it out"),
    ],
)
def test_mistakes_end_in_one_line(tool, arguments, extra, message, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(TOOL)])
    with pytest.raises(SystemExit) as stopped:
        tool.main([*arguments, *extra])
    assert str(stopped.value).startswith("train_lightly.py: ")
    assert message in str(stopped.value)
    assert "\n" not in str(stopped.value)


def test_a_finished_run_is_not_overwritten(tool, arguments, tmp_path):
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    with pytest.raises(SystemExit, match="holds a run already: add --resume"):
        tool.main(arguments)


def test_defaults_fit_the_data(tool):
    digits, cifar, folder = (
        tool.parse_args(["--data", data]) for data in ("digits", "cifar10", "images/")
    )
    assert (digits.backbone, digits.stem, digits.epochs) == ("resnet18", "imagenet", 20)
    assert digits.backbone_kwargs == {"channels": [16, 32, 64, 128]}
    assert (cifar.backbone, cifar.stem, cifar.epochs) == ("resnet18", "cifar", 200)
    assert (folder.backbone, folder.epochs) == ("resnet50", 100)
    assert digits.warmup_epochs == 2
    assert folder.warmup_epochs == 10
    given = tool.parse_args(["--backbone", "resnet50", "--warmup-epochs", "0"])
    assert (given.backbone_kwargs, given.warmup_epochs) == (None, 0)


def test_every_flag_reaches_the_module(tool, image_folder):
    args = tool.parse_args(
        [
            *("--data", str(image_folder), "--image-size", "64"),
            *("--backbone", "test_vit", "--backbone-kwargs", '{"depth": 2}'),
            *("--stem", "imagenet", "--batch-size-per-device", "8", "--lr", "0.5"),
            *("--weight-decay", "0.1", "--temperature", "0.3", "--epsilon", "0.05"),
            *("--knn-k", "7", "--knn-t", "0.2"),
            *("--warmup-epochs", "3", "--centroid-momentum", "0.5"),
            *("--micro-batch-size", "4", "--ema-decay", "0.9"),
            *("--num-negatives", "1", "--accumulate", "2"),
        ]
    )
    datasets = tool.create_datasets(args.data, image_size=args.image_size)
    model = tool.create_model(args, datasets)
    assert dict(model.hparams) == {
        "batch_size_per_device": 8,
        "num_classes": 2,
        "knn_k": 7,
        "knn_t": 0.2,
        "backbone": "test_vit",
        "backbone_kwargs": {"depth": 2},
        "stem": "imagenet",
        "image_size": 64,
        "temperature": 0.3,
        "epsilon": 0.05,
        "leave_one_out": False,
        "centroid_momentum": 0.5,
        "lr": 0.5,
        "weight_decay": 0.1,
        "warmup_epochs": 3.0,
        "micro_batch_size": 4,
        "ema_decay": 0.9,
        "num_negatives": 1,
        "accumulation_steps": 2,
        "shard_centroids": False,
    }
    assert model.criterion.temperature == 0.3
    assert model.criterion.epsilon == 0.05
    assert model.criterion.gather_distributed
    bank = model.criterion.centroids
    assert (bank.momentum, bank.num_negatives, bank.accumulation_steps) == (0.5, 1, 2)
    trainer = tool.create_trainer(args, tool.ResumableSampler(24, 0))
    assert trainer.accumulate_grad_batches == 2
    assert model(torch.zeros(1, 3, 64, 64)).shape == (1, 64)
